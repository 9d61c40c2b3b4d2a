"""YOLO's text files: boxes where they are in other formats, layouts, splits, and what is refused."""

import numpy as np
import pytest
from made_files import jpeg
from PIL import Image

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.data.sources.yolo_txt import YoloTxt
from big_vision_lite.errors import UserError

LINES = {"a": "1 0.25 0.5 0.1 0.4\n0 0.9 0.1 0.2 0.2\n", "b": "\n0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n"}
"""The second box of a reaches to the image's right edge; b has a polygon; c has no file."""


def tree(root, beside=True, names="names: [cat, dog]\n"):
    for split in ("train", "val"):
        images, labels = (root / (f"{kind}/{split}" if beside else f"{split}/{kind}") for kind in ("images", "labels"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for seed, name in enumerate("abc"):
            (images / f"{name}.jpg").write_bytes(jpeg(100, 50, seed))
        for name, lines in LINES.items():
            (labels / f"{name}.txt").write_text(lines)
    (root / "data.yaml").write_text(names)
    return root


@pytest.mark.parametrize("beside", [True, False])
def test_boxes_and_classes(tmp_path, beside):
    data = source_of(f"{tree(tmp_path, beside)}:split=val").open()
    assert data.classes == ("cat", "dog") and data.multi_label and len(data) == 3
    first, second, third = (data[index] for index in range(3))
    np.testing.assert_allclose(first["boxes"], [[0.2, 0.3, 0.3, 0.7], [0.8, 0.0, 1.0, 0.2]], atol=1e-6)
    assert first["box_labels"].tolist() == [1, 0] and first["labels"].tolist() == [0, 1]
    np.testing.assert_allclose(second["boxes"], [[0.1, 0.2, 0.3, 0.6]], atol=1e-6)
    assert third["boxes"].shape == (0, 4) and third["labels"].size == 0
    assert data.image_sizes().tolist() == [[50, 100]] * 3


def test_boxes_are_those_of_the_same_voc_tree(tmp_path):
    """Also of a photo that EXIF turns upright."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / "voc" / folder).mkdir(parents=True)
    for folder in ("images/train", "labels/train"):
        (tmp_path / "yolo" / folder).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in ("voc/JPEGImages/x.jpg", "yolo/images/train/x.jpg"):
        Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / path, exif=exif)  # upright: 80 high, 40 wide
    (tmp_path / "voc/ImageSets/Main/train.txt").write_text("x\n")
    (tmp_path / "voc/Annotations/x.xml").write_text(
        "<annotation><size><width>40</width><height>80</height></size><object><name>cell</name><bndbox><xmin>5</xmin>"
        "<ymin>11</ymin><xmax>20</xmax><ymax>50</ymax></bndbox></object></annotation>")
    left, top, right, bottom = 4 / 40, 10 / 80, 20 / 40, 50 / 80
    (tmp_path / "yolo/labels/train/x.txt").write_text(
        f"0 {(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}")
    voc = VocTree(str(tmp_path / "voc")).open()[0]
    yolo = YoloTxt(str(tmp_path / "yolo"), classes=("cell",)).open()[0]
    np.testing.assert_allclose(yolo["boxes"], voc["boxes"], atol=1e-6)


def test_names_by_number_and_splits_by_hash(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(40):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(jpeg(seed=number))
    (tmp_path / "labels" / "3.txt").write_text("1 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_text("names: {1: dog, 0: cat}\n")
    parts = [YoloTxt(str(tmp_path), split).open() for split in ("train", "val", "test")]
    ids = [data[i]["id"] for data in parts for i in range(len(data))]
    assert len(ids) == len(set(ids)) == 40 == len(YoloTxt(str(tmp_path), "all").open())
    assert parts[0].classes == ("cat", "dog")
    before = YoloTxt(str(tmp_path), "all").open().fingerprint
    (tmp_path / "labels" / "3.txt").write_text("1 0.5 0.5 0.2 0.3")
    assert YoloTxt(str(tmp_path), "all").open().fingerprint != before


@pytest.mark.parametrize(("lines", "message"), [
    ("2 0.5 0.5 0.1 0.1", r"line 1 of .*a\.txt has class 2; expected 0 to 1, as there are 2 names"),
    ("0.5 0.5 0.5 0.1 0.1", "has class 0.5"),
    ("0 0.5 0.5 0.1 0.1\ncat 0.5 0.5 0.1 0.1", r"line 2 of .* is 'cat 0\.5 0\.5 0\.1 0\.1'; expected class cx cy w h"),
    ("0 0.5 0.5 0.1", "expected class cx cy w h"), ("0 0.5 0.5 0.1 nan", "expected class cx cy w h"),
    ("0 50 50 10 10", "in fractions"), ("0 1 2 3 4 5 6 7", "in fractions"),
    ("0 0.5 0.5 0 0", "all 1 boxes are empty"),
])
def test_lines_that_are_no_objects(tmp_path, lines, message):
    labels = tree(tmp_path) / "labels" / "train"
    (labels / "a.txt").write_text(lines)
    (labels / "b.txt").unlink()
    with pytest.raises(UserError, match=message):
        YoloTxt(str(tmp_path)).open()


@pytest.mark.parametrize(("names", "message"), [
    ("names: {0: cat, 2: dog}", r"names have the numbers \[0, 2\]; expected 0, 1, 2"),
    ("names: 3", "expected 'names', a list or"), ("[cat", "expected 'names'"), ("names: [cat, cat]", "cat"),
])
def test_names_that_are_none(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        YoloTxt(str(tree(tmp_path, names=names))).open()
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"has no names of classes; expected data\.yaml"):
        YoloTxt(str(tmp_path)).open()
    with pytest.raises(UserError, match="has no split 'tset'"):
        YoloTxt(str(tmp_path), "tset").open()
