"""One example per object, annotated or detected."""

import json
import pickle

import numpy as np
import pytest
from made_files import people

from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.curation.steps import NestedSubset, curated
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.per_object import PerObject, objects_below
from big_vision_lite.errors import UserError


def test_annotated_objects_have_their_own_boxes_and_keypoints():
    images = EmojiScenes("test", images=30, keypoints=True, classes=5)
    dataset, scenes = PerObject(images).open(), images.open()
    expected = [(i, k) for i in range(30) for k in range(len(scenes[i]["boxes"]))
                if scenes[i]["keypoints"][k, :, 2].any()]
    assert len(dataset) == len(expected) > 60
    index, copy = label_index(dataset), pickle.loads(pickle.dumps(dataset))
    for at, (i, k) in enumerate(expected):
        example, scene = dataset[at], scenes[i]
        assert example["id"] == dataset.labels(at)[0] == index.id(at) == f"{scene['id']}#{k}" == copy[at]["id"]
        assert (example["image_index"], example["object_index"], example["box_score"]) == (i, k, 1)
        for name in ("boxes", "box_labels", "visible", "keypoints"):
            np.testing.assert_array_equal(example[name], scene[name][k:k + 1])
        assert example["labels"].tolist() == index.labels.row(at).tolist() == [scene["box_labels"][k]]
        assert example["image"] == scene["image"] and "instance_mask" not in example
    assert dataset.image_sizes().tolist() == [[48, 48]] * len(dataset)
    few = curated(dataset, (NestedSubset(7),))
    assert len(few) == 7 and objects_below(few) is dataset
    some = PerObject(images, classes=dataset.classes[1:2]).open()
    assert some.classes == dataset.classes[1:2] and 0 < len(some) < len(dataset)
    assert {some[i]["labels"][0] for i in range(len(some))} == {0} and some.fingerprint != dataset.fingerprint


def test_crowds_and_objects_without_labelled_keypoints_are_left_out(tmp_path):
    dataset = PerObject(people(tmp_path)).open()
    assert [dataset[i]["id"] for i in range(len(dataset))] == ["7.png#0", "4.png#0"]


def detections(folder, *rows):
    path = folder / "boxes.json"
    path.write_text(json.dumps([{"image_id": i, "category_id": c, "bbox": box, "score": s} for i, c, box, s in rows]))
    return str(path)


def test_boxes_of_a_detector(tmp_path):
    boxes = detections(tmp_path, (4, 1, [10, 20, 30, 40], 0.75), (7, 1, [-10, 0, 30, 40], 0.5),
                       (4, 1, [0, 0, 9, 9], 0.1),
                       (4, 2, [0, 0, 9, 9], 0.9), (8, 1, [0, 0, 9, 9], 0.9), (7, 1, [300, 0, 9, 9], 0.9))
    dataset = PerObject(people(tmp_path), boxes, min_score=0.2).open()
    first, second = dataset.read(range(2))
    assert len(dataset) == 2 and dataset.detected and not dataset.unlabelled
    assert (first["id"], second["id"], first["image_id"]) == ("7.png#0", "4.png#0", 7)
    np.testing.assert_allclose(first["boxes"], [[0, 0, 0.1, 0.4]], atol=1e-7)
    np.testing.assert_allclose(second["boxes"], [[0.05, 0.2, 0.2, 0.6]], atol=1e-7)
    assert second["box_score"] == 0.75 and second["object_index"] == -1 and second["unlabelled"]
    assert "keypoints" not in second and dataset.fingerprint != PerObject(people(tmp_path), boxes).open().fingerprint

    def without_annotations(data):
        data["annotations"].clear()
        data["categories"][0].pop("keypoints")

    test_dev = people(tmp_path, without_annotations)
    assert PerObject(test_dev, boxes).open().unlabelled
    with pytest.raises(UserError, match=r"no annotated objects; give a detector's: .* --boxes FILE"):
        PerObject(test_dev).open()


@pytest.mark.parametrize(("change", "fields", "message"), [
    (lambda d: [a["keypoints"].__setitem__(slice(2, None, 3), [0] * 17) for a in d["annotations"]], {},
     "none of 2 images has an object with labelled keypoints; expected a source with keypoints"),
    (lambda d: d["annotations"].__delitem__(slice(0, 4)), {}, "no annotated objects; give a detector's"),
    (lambda d: None, {"classes": ("persons",)}, "no class 'persons'; did you mean 'person'"),
    (lambda d: None, {"boxes": "BOXES", "min_score": 2.0}, "none of its 1 detections is in an image of the source"),
])
def test_no_objects(tmp_path, change, fields, message):
    if "boxes" in fields:
        fields = fields | {"boxes": detections(tmp_path, (4, 1, [10, 20, 30, 40], 0.75))}
    source = people(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        PerObject(source, **fields).open()
    assert "\n" not in str(caught.value)


def test_sources_that_do_not_fit(tmp_path):
    source = people(tmp_path)
    plain = CocoJson(source.annotations, source.images)
    with pytest.raises(UserError, match=r"has an object with labelled keypoints; expected a source with keypoints"):
        PerObject(plain).open()
    with pytest.raises(UserError, match=r"labelled keypoints; expected a source with keypoints, such as CocoJson"):
        PerObject(EmojiScenes(images=2)).open()
    with pytest.raises(UserError, match=r"refers to COCO's ids.*EmojiScenes does not know"):
        PerObject(EmojiScenes(images=2, keypoints=True), detections(tmp_path)).open()
    with pytest.raises(UserError, match=r"is a PerObject itself"):
        PerObject(PerObject(source)).open()
    with pytest.raises(UserError, match=r"one example per image; keypoints are scored per object"):
        objects_below(source.open())
    (tmp_path / "broken.json").write_text('[{"image_id": 4}]')
    with pytest.raises(UserError, match=r"cannot read .*broken.json: .*expected COCO's results"):
        PerObject(source, str(tmp_path / "broken.json")).open()
