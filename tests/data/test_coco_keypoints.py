"""Keypoints in COCO's format: read as they are, and refused where they are broken."""

import json

import numpy as np
import pytest
from made_files import people
from PIL import Image

from big_vision_lite.data.keypoints import COCO_PERSON, EMOJI, KeypointSet
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools.prepare import prepare
from big_vision_lite.errors import UserError


def test_keypoints_are_where_the_dots_are(tmp_path):
    dataset = people(tmp_path).open()
    annotations = json.loads((tmp_path / "people.json").read_text())["annotations"]
    first, second = dataset.read(range(2))
    assert first["keypoints"].shape == (3, 17, 3) and not first["keypoints"][1:].any()
    assert dataset.objects_with_keypoints().tolist() == [[0, 0, 0], [1, 0, 0]]
    for example, annotation in ((first, annotations[0]), (second, annotations[3])):
        points, expected = example["keypoints"][0], np.reshape(annotation["keypoints"], (17, 3))
        np.testing.assert_array_equal(points[:, 2], expected[:, 2])
        image = np.asarray(Image.open(tmp_path / "people" / f"{annotation['image_id']}.png"))
        for x, y, _ in points[points[:, 2] > 0]:
            assert (image[int(100 * y), int(200 * x)] == 255).all()  # the very pixel, and its centre
            assert (100 * y) % 1 == pytest.approx(0.5, abs=1e-4) and (200 * x) % 1 == pytest.approx(0.5, abs=1e-4)
    names = COCO_PERSON.names
    swapped = [names[i] for i in first["keypoint_mirror"]]
    assert swapped == [name.replace("left", "L").replace("right", "left").replace("L", "right") for name in names]
    plain = people(tmp_path).__class__(str(tmp_path / "people.json"), str(tmp_path / "people")).open()
    assert "keypoints" not in plain[0] and plain.fingerprint != dataset.fingerprint


def test_keypoints_of_a_photo_that_exif_turns(tmp_path):
    source = people(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("7", "4"):
        Image.open(tmp_path / "people" / f"{name}.png").save(tmp_path / "people" / f"{name}.png", exif=exif)
    example = source.open()[0]
    image = np.rot90(np.asarray(Image.open(tmp_path / "people" / "7.png")), -1)
    for x, y, _ in example["keypoints"][0]:
        assert (image[int(200 * y), int(100 * x)] == 255).all()


def test_prepared_keypoints_are_the_same(tmp_path):
    dataset = people(tmp_path).open()
    prepare({"train": dataset}, tmp_path, "mine", processes=1)
    prepared = Tfds("mine", "train", str(tmp_path)).open()
    for i in range(2):
        for name in ("keypoints", "keypoint_mirror", "crowd"):
            np.testing.assert_array_equal(prepared[i][name], dataset[i][name])
    np.testing.assert_array_equal(prepared.objects_with_keypoints(), dataset.objects_with_keypoints())


def points(change):
    def apply(data):
        change(data["annotations"][0])
    return apply


@pytest.mark.parametrize(("change", "message"), [
    (points(lambda a: a["keypoints"].__setitem__(2, 3)), "annotation 70 has visibility 3; expected 0 .*, 1 .* or 2"),
    (points(lambda a: a["keypoints"].__setitem__(5, -1)), "annotation 70 has visibility -1; expected 0"),
    (points(lambda a: a["keypoints"].pop()), "annotation 70 has 50 numbers for keypoints; expected 51: x, y and"),
    (points(lambda a: a.update(keypoints=[1, 2, 2])), "annotation 70 has 3 numbers for keypoints; expected 51"),
    (points(lambda a: a.update(keypoints="nose")), "keypoints of annotation 70: .*expected a list of x, y and"),
    (points(lambda a: a["keypoints"].__setitem__(0, None)), "keypoints of annotation 70: .*expected a list of x"),
    (points(lambda a: a["keypoints"].__setitem__(0, 1e9)), "keypoints of annotation 70: .*expected a list of x"),
    (lambda d: d["categories"][0].pop("keypoints"), "names no keypoints in its categories; expected a file such as"),
    (lambda d: d["categories"].append({"id": 2, "name": "cat", "keypoints": ["nose"]}),
     "category 'cat' has the keypoints nose, and another nose, left_eye"),
    (lambda d: [a["keypoints"].__setitem__(slice(0, None, 3), [300] * 17) for a in d["annotations"]],
     r"all 28 labelled keypoints lie outside of their images; the first is at x 300, y .* in an image of 200 x 100"),
])
def test_malformed_keypoints(tmp_path, change, message):
    source = people(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        source.open()
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path / "people.json"))
    source.__class__(source.annotations, source.images).open()  # without keypoints nothing is wrong


def test_some_keypoints_may_lie_outside_and_some_objects_have_none(tmp_path):
    def change(data):
        data["annotations"][0]["keypoints"][0] = 250
        del data["annotations"][1]["keypoints"]
    keypoints = people(tmp_path, change).open()[0]["keypoints"]
    assert keypoints[0, 0, 0] == pytest.approx(250.5 / 200) and not keypoints[1].any()


@pytest.mark.parametrize(("fields", "message"), [
    ({"names": ()}, "at least one name"), ({"names": ("a", "a"), "sigmas": (1.0, 1.0)}, "no duplicates"),
    ({"names": ("a",), "sigmas": (0.1, 0.1)}, "expected 1 numbers above 0"),
    ({"names": ("a",), "sigmas": (0.0,)}, "expected 1 numbers above 0"),
    ({"names": ("a", "b"), "sigmas": (0.1, 0.1), "limbs": ((0, 2),)}, "expected pairs of keypoints from 0 to 1"),
])
def test_sets_of_keypoints(fields, message):
    with pytest.raises(UserError, match=message):
        KeypointSet(**{"sigmas": (), **fields})
    assert EMOJI.mirror == (0, 1, 3, 2) and len(COCO_PERSON) == 17
