"""COCO's JSON files: read as pycocotools does, and refused where they are broken."""

import contextlib
import io
import json

import numpy as np
import pytest
from made_files import coco, jpeg
from pycocotools import mask as rle
from pycocotools.coco import COCO

from big_vision_lite.data.decode import DecodeError
from big_vision_lite.data.sources.coco_json import CocoJson, instance_mask
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools.prepare import prepare
from big_vision_lite.errors import BadImageError, UserError


def test_coco(tmp_path):
    dataset = coco(tmp_path).open()
    assert dataset.classes == ("train", "sign", "toothbrush") and dataset.category_ids == (7, 13, 90)
    first, second, third = (dataset[i] for i in range(3))
    assert (first["id"], first["image_id"], first["labels"].tolist()) == ("5.jpg", 5, [0, 2])
    np.testing.assert_allclose(first["boxes"], [[0.1, 0.1, 0.3, 0.5], [0, 0, 1, 1]], atol=1e-7)
    assert first["crowd"].tolist() == [False, True] and first["area"].tolist() == [11.5, 12.5]
    assert first["box_labels"].tolist() == [2, 0] and first["image"] == jpeg(seed=5)
    mask = first["instance_mask"]
    assert (mask[1:5, 2:6] == 1).all() and (mask == 1).sum() == 16
    assert (mask[:, 19] == 2).all() and (mask == 2).sum() == 10
    np.testing.assert_allclose(second["boxes"], [[0, 0.2, 0.25, 0.5], [0.75, 0.5, 1, 1]], atol=1e-7)
    assert (dataset.count.boxes, dataset.count.clipped, dataset.count.dropped) == (6, 2, 2)
    assert second["labels"].tolist() == [0, 2] and third["labels"].tolist() == [] and third["boxes"].shape == (0, 4)
    kept = CocoJson(str(tmp_path / "instances.json"), str(tmp_path / "images"), keep_empty=False).open()
    assert len(kept) == 2 and kept.fingerprint != dataset.fingerprint


def test_coco_reads_what_pycocotools_reads(tmp_path):
    """Random polygons, crowds and boxes, all within their images."""
    rng = np.random.default_rng(0)

    def change(data):
        data["images"] = [{"id": 7 * i + 3, "file_name": name, "width": 200, "height": 100}
                          for i, name in enumerate(("9.jpg", "3.jpg", "5.jpg"))]
        for image in data["images"]:
            (tmp_path / "images" / image["file_name"]).write_bytes(jpeg(200, 100))
        data["annotations"] = []
        for k in range(60):
            left, top, width, height = (round(float(x), 2) for x in rng.uniform([0, 0, 5, 5], [120, 60, 80, 40]))
            around = np.sort(rng.uniform(0, 2 * np.pi, 12))
            polygon = np.stack([left + width * (1 + np.cos(around)) / 2, top + height * (1 + np.sin(around)) / 2], 1)
            outline = [np.round(polygon.ravel()[:12], 2).tolist(), np.round(polygon.ravel()[12:], 2).tolist()]
            if crowd := k % 10 == 0:
                runs = rle.encode(np.asfortranarray(rng.integers(0, 2, (100, 200), np.uint8)))
                outline = {"size": [100, 200], "counts": runs["counts"].decode()}
            data["annotations"].append({"id": k, "image_id": 7 * int(rng.integers(2)) + 3, "category_id": 7,
                                        "bbox": [left, top, width, height], "area": float(k), "iscrowd": int(crowd),
                                        "segmentation": outline})

    dataset = coco(tmp_path, change).open()
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(tmp_path / "instances.json"))
    assert (dataset.count.clipped, dataset.count.dropped) == (0, 0)
    for example in dataset.read(range(3)):
        annotations = reference.loadAnns(reference.getAnnIds([example["image_id"]]))
        x1, y1, x2, y2 = (example["boxes"] * [200, 100, 200, 100]).T
        xywh = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        np.testing.assert_allclose(np.stack([x1, y1, x2 - x1, y2 - y1], 1), xywh, atol=1e-4)
        assert [dataset.category_ids[label] for label in example["box_labels"]] == [
            a["category_id"] for a in annotations]
        assert example["crowd"].tolist() == [a["iscrowd"] == 1 for a in annotations]
        assert example["area"].tolist() == [a["area"] for a in annotations]
        mask = np.zeros((100, 200), np.uint8)
        for k, annotation in enumerate(annotations, 1):
            mask[reference.annToMask(annotation) == 1] = k
        np.testing.assert_array_equal(example["instance_mask"], mask)


def mask_of(*segmentations):
    return instance_mask(json.dumps(segmentations).encode(), 10, 20)


def test_masks_from_polygons_and_from_both_kinds_of_run_lengths():
    diagonal = np.eye(10, 20, dtype=np.uint8)
    text = rle.encode(np.asfortranarray(diagonal))["counts"].decode()
    runs = {"size": [10, 20], "counts": [0, 1] + [10, 1] * 9 + [100]}
    polygons = [[15, 0, 20, 0, 20, 2, 15, 2], [0, 8, 2, 8, 2, 10, 0, 10]]
    mask = mask_of({"size": [10, 20], "counts": text}, None, [], runs, polygons)
    assert (mask[:2, 15:] == 5).all() and (mask[8:, :2] == 5).all() and (mask == 5).sum() == 14
    np.testing.assert_array_equal(mask == 4, diagonal == 1)  # it covers the first one
    np.testing.assert_array_equal(mask_of({"size": [10, 20], "counts": text}), diagonal)
    assert not mask_of([[2, 1, 6, 5]]).any()  # a line, which pycocotools takes for a box
    far = [[-900, -900, 1000, -900, 1000, 900, -900, 900]]
    assert mask_of(far).all() and rle.decode(rle.merge(rle.frPyObjects(far, 10, 20))).all()


SIZE = {"size": [10, 20]}


@pytest.mark.parametrize(("segmentation", "message"), [
    ({"size": [5, 5], "counts": [5, 20]}, "its size is 5 x 5 pixels"),
    ({**SIZE, "counts": [5, 2000]}, "total counts 2005 exceed"),
    ({**SIZE, "counts": [5, 20]}, "its runs end before the last pixel"),
    ({**SIZE, "counts": [300, -100]}, r"`int` >= 0 - at `\$.counts\[1\]"),
    ({**SIZE, "counts": [2**32 + 5, 195]}, r"`int` <= 4294967295 - at `\$.counts\[0\]"),
    ({**SIZE, "counts": "0P"}, "its runs end before the last pixel"),  # pycocotools reads past the end of the text
    ({**SIZE, "counts": ""}, "its runs end before the last pixel"),
    ({**SIZE, "counts": "o" * 40}, "RLE"),
    ({**SIZE, "counts": "\u00e9\u0000"}, "RLE"),
    ({**SIZE, "counts": "Pl5"}, "RLE"),  # more pixels than there are
    (SIZE, "missing required field `counts`"),
    ("x", "got `str`"),
    ([[[2, 2], [7, 2], [7, 6], [2, 6]]], r"Expected `float`, got `array` - at `\$\[0\]\[0\]`"),
    ([[2, 2], [7, 2], [7, 6], [2, 6]], r"`array` of length >= 4 - at `\$\[0\]`"),
    ([[2, 2, 7, 2, 7, 6, 2]], "an x without a y"),
    ([[2, 2, 1e9, 2, 7, 6]], r"`float` <= 1000000.0 - at `\$\[0\]\[2\]`"),
    ([[2, 2, "7", 2, 7, 6]], "got `str`"),
])
def test_segmentations_that_cannot_be_drawn(segmentation, message):
    """Several of them crashed pycocotools, or left the mask as memory was before."""
    with pytest.raises(DecodeError, match=f"segmentation of object 2 cannot be drawn on 20 x 10 pixels .*{message}"):
        mask_of(None, segmentation)


def test_a_segmentation_that_cannot_be_drawn_is_a_bad_image(tmp_path):
    dataset = coco(tmp_path, lambda d: d["annotations"][1].update(segmentation={"size": [1, 1], "counts": [1]})).open()
    with pytest.raises(BadImageError, match=r"'5.jpg' cannot be read: the segmentation of object 2"):
        dataset[0]


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.pop("categories"), "missing required field `categories`"),
    (lambda d: d["images"].append(d["images"][0]), "two images with id 5"),
    (lambda d: d["annotations"][2].update(image_id=4), "annotation 2 is of image 4, which is not among"),
    (lambda d: d["annotations"][1].update(category_id=8), "annotation 1 is of category 8, which is not among"),
    (lambda d: d["images"][1].update(file_name="33.jpg"), "there is no file .*33.jpg' \\(1 are missing\\)"),
    (lambda d: d["images"][1].update(file_name="3.jpg\0"), "there is no file .*3.jpg.x00' \\(1 are missing\\)"),
    (lambda d: d["images"][1].update(file_name="3" * 5000), r"length <= 1000 - at `\$.images\[1\].file_name"),
    (lambda d: d["images"][1].update(file_name="../images/3.jpg"), "leads out of its folder"),
    (lambda d: d["images"][1].pop("width"), r"missing required field `width` - at `\$.images\[1\]"),
    (lambda d: d["images"][1].update(width=0), r"Expected `float` >= 1.0 - at `\$.images\[1\].width"),
    (lambda d: d["images"][1].update(width=1e12), r"Expected `float` < 2147483648.0 - at `\$.images\[1\].width"),
    (lambda d: d["images"][1].update(width=20.5), r"multiple of 1.0 - at `\$.images\[1\].width"),
    (lambda d: d["images"][1].update(id="3"), "has images with numbers and with texts as ids"),
    (lambda d: d["images"][1].update(id=2**80), r"`int` <= 9223372036854775807 - at `\$.images\[1\].id"),
    (lambda d: d["images"].append("9.jpg"), r"Expected `object`, got `str` - at `\$.images\[3\]"),
    (lambda d: d["images"][1].update(file_name="5.jpg"), "two images with file name '5.jpg'"),
    (lambda d: d["annotations"][3].pop("category_id"), r"required field `category_id` - at `\$.annotations\[3\]"),
    (lambda d: d["annotations"][1].update(bbox=[]), r"Expected `array` of length 4 - at `\$.annotations\[1\].bbox"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, 3, "4"]), r"got `str` - at `\$.annotations\[1\].bbox\[3\]"),
    (lambda d: d["annotations"][1].update(bbox=[[1, 2, 3, 4]] * 4), r"got `array` - at `\$.annotations\[1\].bbox\[0\]"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, 1e12, 4]), r"<= 1000000.0 - at `\$.annotations\[1\].bbox\[2\]"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, float("nan"), 4]), "malformed.* without NaN"),
    (lambda d: d["annotations"][1].update(segmentation=[[1, 2, float("inf"), 4, 5, 6]]), "malformed.* without NaN"),
    (lambda d: d["annotations"][1].update(iscrowd="0"), r"got `str` - at `\$.annotations\[1\].iscrowd"),
    (lambda d: d["annotations"][1].update(iscrowd=2), r"<= 1.0 - at `\$.annotations\[1\].iscrowd"),
    (lambda d: d["annotations"][1].update(area="12.5"), r"got `str` - at `\$.annotations\[1\].area"),
    (lambda d: d["annotations"][1].update(area=-1), r">= 0.0 - at `\$.annotations\[1\].area"),
    (lambda d: d["annotations"].extend(d["annotations"][:1] * 255), "'5.jpg' has 257 objects, but a mask holds"),
    (lambda d: [a.update(bbox=[8, 2, -4, 3]) for a in d["annotations"]],
     "all 6 boxes are empty; of the first, which spans 8 to 4 across and 2 to 5 down, xmin is not below xmax"),
    (lambda d: [a.update(bbox=[8, 2, 4, 0]) for a in d["annotations"]], "all 6 boxes are .*ymin is not below ymax"),
    (lambda d: [a.update(bbox=[20, 2, 4, 4]) for a in d["annotations"]], "all 6 boxes are .*outside of its image"),
    (lambda d: d["categories"][1].update(id=90), "two categories with id 90"),
    (lambda d: d["categories"][1].update(name="sign"), "has the class 'sign' twice"),
    (lambda d: d["categories"][1].update(name="a\nsign"), r"has the class 'a\\nsign'; expected a line of text"),
    (lambda d: (d["categories"].clear(), d["annotations"].clear()), "has no classes"),
    (lambda d: (d["images"].clear(), d["annotations"].clear()), "has no images; choose another"),
])
def test_malformed_coco(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        coco(tmp_path, change).open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("old", "new", "message"), [
    (b'"area": 12.5', b'"area": 1e400', r"Number out of range - at `\$.annotations\[1\].area"),
    (b'"image_id": 5', b'"image_id": 1' + b"0" * 400, r"<= 9223372036854775807 - at `\$.annotations\[0\].image_id"),
    (b'"segmentation": []', b'"segmentation": ' + b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    (b'{"images"', b'{"info": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b', "images"', "nested too deeply"),
    (b'"file_name"', b'"file\x00name"', "malformed|invalid"),
    (b'"train"', b'"\\ud800"', "surrogate"),
    (b'"train"', b'"\xff"', "utf-8"),
    (b'"categories"', b"", "malformed"),
])
def test_bytes_that_json_should_not_hold(tmp_path, old, new, message):
    source = coco(tmp_path)
    data = (tmp_path / "instances.json").read_bytes()
    (tmp_path / "instances.json").write_bytes(data.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"cannot read .*instances.json: .*({message})") as caught:
        source.open()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_missing_and_truncated_coco_files(tmp_path):
    source = coco(tmp_path)
    text = (tmp_path / "instances.json").read_text()
    (tmp_path / "instances.json").write_text(text[:100])
    with pytest.raises(UserError, match=r"cannot read .*instances.json: Input data was truncated.*complete"):
        source.open()
    for path, message in (("none.json", "No such file"), ("images", "not a regular file")):
        with pytest.raises(UserError, match=rf"cannot read .*{path}: .*{message}"):
            CocoJson(str(tmp_path / path), str(tmp_path)).open()


def test_ids_may_be_text_as_for_pycocotools(tmp_path):
    def as_text(data):
        for entry in (*data["images"], *data["categories"]):
            entry["id"] = f"k{entry['id']}"
        for annotation in data["annotations"]:
            annotation |= {key: f"k{annotation[key]}" for key in ("image_id", "category_id")}

    with contextlib.redirect_stdout(io.StringIO()):
        dataset, reference = coco(tmp_path, as_text).open(), COCO(str(tmp_path / "instances.json"))
    assert dataset.category_ids == ("k13", "k7", "k90") and [e["image_id"] for e in dataset.read(range(3))] == [
        "k5", "k3", "k9"]
    for example in dataset.read(range(3)):
        categories = {a["category_id"] for a in reference.loadAnns(reference.getAnnIds([example["image_id"]]))}
        assert {dataset.category_ids[label] for label in example["labels"]} <= categories
    (tmp_path / "minival.txt").write_text("k9\nk3\n")
    source = CocoJson(str(tmp_path / "instances.json"), str(tmp_path / "images"), only=str(tmp_path / "minival.txt"))
    assert source.open().image_ids.tolist() == ["k3", "k9"]
    prepare({"train": dataset}, tmp_path, "mine", processes=1)
    np.testing.assert_array_equal(Tfds("mine", "train", str(tmp_path)).open()[0]["boxes"], dataset[0]["boxes"])


@pytest.mark.parametrize(("value", "crowd"), [(0, False), (1, True), (0.0, False), (1.0, True), (True, True),
                                              (False, False), (None, False)])
def test_crowds_are_zero_or_one(tmp_path, value, crowd):
    dataset = coco(tmp_path, lambda d: d["annotations"][0].update(iscrowd=value)).open()
    assert dataset[0]["crowd"].tolist() == [crowd, True]
