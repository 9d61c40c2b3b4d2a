"""COCO's JSON files: read as pycocotools does, and refused where they are broken."""

import contextlib
import io

import numpy as np
import pytest
from made_files import coco, jpeg
from pycocotools import mask as rle
from pycocotools.coco import COCO

from big_vision_lite.data.decode import DecodeError
from big_vision_lite.data.sources.coco_json import CocoJson, instance_mask
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


def test_masks_from_polygons_and_from_both_kinds_of_run_lengths():
    diagonal = np.eye(10, 20, dtype=np.uint8)
    runs = {"size": [10, 20], "counts": [0, 1] + [10, 1] * 9 + [100]}
    polygons = [[15, 0, 20, 0, 20, 2, 15, 2], [0, 8, 2, 8, 2, 10, 0, 10]]
    outlines = [rle.encode(np.asfortranarray(diagonal)), None, [], runs, polygons]
    mask = instance_mask(outlines, 10, 20)
    assert (mask[:2, 15:] == 5).all() and (mask[8:, :2] == 5).all() and (mask == 5).sum() == 14
    np.testing.assert_array_equal(mask == 4, diagonal == 1)  # it covers the first one
    assert not instance_mask([[[2, 1, 6, 5]]], 10, 20).any()  # a line, which pycocotools takes for a box
    size = [10, 20]
    for wrong in ({"size": [5, 5], "counts": [5, 20]}, {"size": size, "counts": [5, 2000]}, {"size": size}, "x"):
        with pytest.raises(DecodeError, match="segmentation of object 2 cannot be drawn on 20 x 10 pixels"):
            instance_mask([None, wrong], 10, 20)


def test_a_segmentation_that_cannot_be_drawn_is_a_bad_image(tmp_path):
    dataset = coco(tmp_path, lambda d: d["annotations"][1].update(segmentation={"size": [1, 1], "counts": [1]})).open()
    with pytest.raises(BadImageError, match=r"'5.jpg' cannot be read: the segmentation of object 2"):
        dataset[0]


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.pop("categories"), "has no list 'categories'"),
    (lambda d: d["images"].append(d["images"][0]), "two images with id 5"),
    (lambda d: d["annotations"][2].update(image_id=4), "annotation 2 is of image 4, which is not among"),
    (lambda d: d["annotations"][1].update(category_id=8), "annotation 1 is of category 8, which is not among"),
    (lambda d: d["images"][1].update(file_name="33.jpg"), "there is no file .*33.jpg' \\(1 are missing\\)"),
    (lambda d: d["images"][1].update(file_name="../images/3.jpg"), "leads out of its folder"),
    (lambda d: d["images"][1].pop("width"), r"images\[1\] \(id 3\) lacks 'width'; expected a number"),
    (lambda d: d["images"][1].update(width=0), "image 3 has height 10 and width 0"),
    (lambda d: d["images"][1].update(id="3"), r"images\[1\] \(id '3'\) has id='3'; expected an integer"),
    (lambda d: d["images"].append("9.jpg"), r"images\[3\] is not an object; expected one with id, file_name"),
    (lambda d: d["images"][1].update(file_name="5.jpg"), "two images with file name '5.jpg'"),
    (lambda d: d["annotations"][3].pop("category_id"), r"annotations\[3\] \(id 3\) lacks 'category_id'"),
    (lambda d: d["annotations"][1].update(bbox=[]), r"annotation 1 has bbox=\[\]; expected four numbers"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, 3, "x"]), r"annotation 1 has bbox=\[1, 2, 3, 'x'\]"),
    (lambda d: d["annotations"].extend(d["annotations"][:1] * 255), "'5.jpg' has 257 objects, but a mask holds"),
    (lambda d: d["categories"][1].update(id=90), "two categories with the same id"),
    (lambda d: d["categories"][1].update(name="sign"), "has the class 'sign' twice"),
    (lambda d: (d["categories"].clear(), d["annotations"].clear()), "has no classes"),
    (lambda d: (d["images"].clear(), d["annotations"].clear()), "has no images; choose another"),
])
def test_malformed_coco(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        coco(tmp_path, change).open()


def test_missing_and_truncated_coco_files(tmp_path):
    source = coco(tmp_path)
    text = (tmp_path / "instances.json").read_text()
    (tmp_path / "instances.json").write_text(text[:100])
    with pytest.raises(UserError, match=r"is not valid JSON .*it may be truncated"):
        source.open()
    with pytest.raises(UserError, match=r"cannot read CocoJson.annotations"):
        CocoJson(str(tmp_path / "none.json"), str(tmp_path)).open()
