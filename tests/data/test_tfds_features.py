"""Features of TFDS's datasets, as its catalogue declares them."""

import cv2
import numpy as np
import pytest

from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools.shard_writer import quiet, write_records

PNG = cv2.imencode(".png", np.full((6, 5, 3), 1, np.uint8))[1].tobytes()
CATALOGUE = {
    # As TFDS 4.9 declares them, but with fewer classes for Open Images and COCO.
    "imagenet2012": lambda f: {"file_name": f.Text(), "image": f.Image(), "label": f.ClassLabel(num_classes=1000)},
    "imagenet_v2": lambda f: {"file_name": f.Text(), "image": f.Image(), "label": f.ClassLabel(num_classes=1000)},
    "cifar10": lambda f: {"id": f.Text(), "image": f.Image(shape=(6, 5, 3)), "label": f.ClassLabel(num_classes=10)},
    "open_images_v4": lambda f: {
        "bobjects": f.Sequence({"bbox": f.BBoxFeature(), "label": f.ClassLabel(num_classes=601)}),
        "image": f.Image(), "image/filename": f.Text(),
        "objects": f.Sequence({"confidence": np.int32, "label": f.ClassLabel(num_classes=900)}),
        "objects_trainable": f.Sequence({"confidence": np.int32, "label": f.ClassLabel(num_classes=700)})},
    "coco": lambda f: {
        "image": f.Image(), "image/filename": f.Text(), "image/id": np.int64,
        "objects": f.Sequence({"area": np.int64, "bbox": f.BBoxFeature(), "id": np.int64, "is_crowd": np.bool_,
                               "label": f.ClassLabel(num_classes=80)})},
    "voc": lambda f: {
        "image": f.Image(), "image/filename": f.Text(), "labels": f.Sequence(f.ClassLabel(num_classes=20)),
        "labels_no_difficult": f.Sequence(f.ClassLabel(num_classes=20)),
        "objects": f.Sequence({"bbox": f.BBoxFeature(), "is_difficult": np.bool_, "is_truncated": np.bool_,
                               "label": f.ClassLabel(num_classes=20), "pose": f.ClassLabel(num_classes=5)})},
}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """One image of each important dataset, with TFDS's features."""
    import tensorflow_datasets as tfds

    folder, box = tmp_path_factory.mktemp("catalogue"), tfds.features.BBox(0.1, 0.2, 0.3, 0.4)
    values = {
        "bobjects": [{"bbox": box, "label": 5}],
        "objects_trainable": [{"confidence": c, "label": label} for c, label in ((10, 3), (0, 4), (6, 699), (2, 5))],
        "labels": [3, 7], "labels_no_difficult": [3], "id": "train_1", "file_name": "a.jpg", "image/filename": "b.jpg",
        "image/id": 9, "image": PNG, "label": 2}
    objects = {
        "open_images_v4": [{"confidence": c, "label": label} for c, label in ((10, 3), (0, 4), (6, 899))],
        "coco": [{"area": 12, "bbox": box, "id": 1, "is_crowd": True, "label": 79}],
        "voc": [{"bbox": box, "is_difficult": d, "is_truncated": False, "label": label, "pose": 0}
                for d, label in ((False, 3), (True, 7))]}
    for name, make in CATALOGUE.items():
        features = tfds.features.FeaturesDict(make(tfds.features))
        place = folder / name / "2.0.0"
        place.mkdir(parents=True)
        example = {key: objects[name] if key == "objects" else values[key] for key in features}
        write_records(str(place / f"{name}-train.array_record-00000-of-00001"),
                      iter([features.serialize_example(example)]))
        template = tfds.core.ShardedFileTemplate(data_dir=place, dataset_name=name, split="train",
                                                 filetype_suffix="array_record")
        split = tfds.core.SplitInfo(name="train", shard_lengths=[1], num_bytes=9, filename_template=template)
        with quiet():
            tfds.folder_dataset.write_metadata(data_dir=place, features=features, split_infos=[split], check_data=False,
                                               filename_template=template)
    return folder


@pytest.mark.parametrize(("name", "fields", "id_", "classes", "labels"), [
    ("imagenet2012", {}, "a.jpg", 1000, [2]),
    ("imagenet_v2", {}, "a.jpg", 1000, [2]),
    ("cifar10", {}, "train_1", 10, [2]),
    ("open_images_v4", {"label_key": "objects_trainable"}, "b.jpg", 700, [3, 699]),
    ("open_images_v4", {"min_confidence": 1, "label_key": "objects_trainable"}, "b.jpg", 700, [3, 5, 699]),
    ("open_images_v4", {"min_confidence": 0, "label_key": "objects_trainable"}, "b.jpg", 700, [3, 5, 699]),
    ("open_images_v4", {"label_key": "objects", "min_confidence": 9}, "b.jpg", 900, [3]),
    ("open_images_v4", {"label_key": "bobjects"}, "b.jpg", 601, [5]),
    ("coco", {}, "b.jpg", 80, [79]),
    ("voc", {}, "b.jpg", 20, [3, 7]),
])
def test_data_sets_of_the_catalogue(catalogue, name, fields, id_, classes, labels):
    dataset = Tfds(name, "train", str(catalogue), **fields).open()
    example = dataset[0]
    assert (example["id"], len(dataset.classes), example["labels"].tolist()) == (id_, classes, labels)
    assert dataset.multi_label == (name in ("open_images_v4", "coco", "voc"))
    assert dataset.labels(0)[0] == id_ and dataset.labels(0)[1].tolist() == labels and example["image"] == PNG
    if name in ("coco", "voc") or fields.get("label_key") == "bobjects":
        np.testing.assert_allclose(example["boxes"][0], [0.2, 0.1, 0.4, 0.3])
    if name == "coco":
        assert example["crowd"].tolist() == [True] and example["area"].tolist() == [12] and example["image_id"] == 9
    if name == "voc":
        assert example["difficult"].tolist() == [False, True] and example["box_labels"].tolist() == [3, 7]
