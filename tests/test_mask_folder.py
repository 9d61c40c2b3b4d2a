"""Images and masks in folders: classes named in every way, splits in every way, and what is wrong is named."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.coco_panoptic import COCO_PANOPTIC
from big_vision_lite.data.joint_transforms import ScaleJitter
from big_vision_lite.data.mask_folder import MaskFolder
from big_vision_lite.errors import BadImageError, UserError

MASK = np.array([[0, 1, 1], [2, 2, 255]], np.uint8).repeat(4, 0).repeat(4, 1)


def png(pixels, palette=False) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if palette:
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + [7] * 759)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def folder(root, masks, images="images", of_masks="masks"):
    """One image of 12 x 8 for each mask, by name."""
    for name, mask in masks.items():
        picture, drawing = root / images / f"{name}.jpg", root / of_masks / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        drawing.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 12, 3), 100, np.uint8)).save(picture)
        drawing.write_bytes(mask if isinstance(mask, bytes) else png(mask))
    return str(root)


def test_masks_become_class_masks(tmp_path):
    root = folder(tmp_path, {"b": MASK, "a": png(MASK, palette=True), "sub/c": np.zeros((8, 12), np.uint8)})
    records = MaskFolder(root, "all", classes=("cat", "dog")).open()
    assert [records[i]["id"] for i in range(3)] == ["a.jpg", "b.jpg", "sub/c.jpg"] and records.classes == ("cat", "dog")
    for i, labels in enumerate(([0, 1], [0, 1], [])):
        example = records[i]
        assert example["class_mask"].dtype == np.uint8 and example["labels"].tolist() == labels
    np.testing.assert_array_equal(records[0]["class_mask"], MASK)
    np.testing.assert_array_equal(records[1]["class_mask"], MASK)
    assert records.image_sizes().tolist() == [[8, 12]] * 3
    out, rng = np.empty((16, 16, 3), np.uint8), np.random.default_rng(0)
    found = ScaleJitter(16, (1.0, 1.0), flip=False)(records[0], rng, out)
    np.testing.assert_array_equal(found["class_mask"][:8, :12], MASK)
    assert MaskFolder(root, "all", classes=("cat", "cow")).open().fingerprint != records.fingerprint


@pytest.mark.parametrize(("file", "text"), [
    ("classes.txt", "cat\ndog\n"), ("classes.txt", "background\ncat\ndog"), ("classes.txt", "1 cat\n2: dog\n255 void"),
    ("classes.json", '["cat", "dog"]'), ("classes.json", '{"0": "background", "1": "cat", "2": "dog"}'),
    ("classes.json", '{"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}'), (None, None),
], ids=str)
def test_names_of_classes(tmp_path, file, text):
    root = folder(tmp_path, {"a": MASK})
    if file:
        (tmp_path / file).write_text(text)
    records = MaskFolder(root, "all").open()
    assert records.classes == (("cat", "dog") if file else ("1", "2"))
    np.testing.assert_array_equal(records[0]["class_mask"], MASK)


def test_values_with_gaps_joined_and_left_out(tmp_path):
    values = np.array([[0, 7], [90, 200]], np.uint8).repeat(4, 0).repeat(6, 1)
    root = folder(tmp_path, {"a": values})
    options = {"root": root, "split": "all", "background": None, "void": (0,)}
    gaps = MaskFolder(classes=("x", "y", "z"), values=(7, 90, 200), **options).open()
    np.testing.assert_array_equal(gaps[0]["class_mask"][::4, ::6], [[255, 1], [2, 3]])
    joined = MaskFolder(classes=("x", "y", "x"), values=(7, 90, 200), **options).open()
    assert joined.classes == ("x", "y") and joined[0]["class_mask"][::4, ::6].tolist() == [[255, 1], [2, 1]]
    for others, value in (("void", 255), ("background", 0)):
        rest = MaskFolder(classes=("x",), values=(7,), others=others, **options).open()
        assert rest[0]["class_mask"][::4, ::6].tolist() == [[255, 1], [value, value]]
    with pytest.raises(BadImageError, match=r"image 'a.jpg' .* are no class: 90, 200; known are 0, 7: name"):
        MaskFolder(classes=("x",), values=(7,), **options).open()[0]
    every = MaskFolder(root, "all", classes=("a", "b"), background=None, others="void").open()
    assert every[0]["class_mask"][::4, ::6].tolist() == [[1, 255], [255, 255]]  # values count from 0


def test_splits(tmp_path):
    names = [f"{i:03}" for i in range(60)]
    root = folder(tmp_path / "hash", dict.fromkeys(names, MASK))
    parts = [MaskFolder(root, split, classes=("x", "y"), held_out=0.2).open() for split in ("train", "val", "test")]
    ids = [{part[i]["id"] for i in range(len(part))} for part in parts]
    assert sum(map(len, ids)) == 60 == len(set.union(*ids)) and min(map(len, ids)) > 3
    (tmp_path / "hash" / "val.txt").write_text("003\n001.jpg\n")
    listed = MaskFolder(root, "validation", classes=("x", "y")).open()
    assert [listed[i]["id"] for i in range(len(listed))] == ["003.jpg", "001.jpg"]
    (tmp_path / "hash" / "mini.txt").write_text("003\n999\n")
    for split, says in (("mini", "names '999', which is no image with a mask"), ("trian", "did you mean 'train'")):
        with pytest.raises(UserError, match=says):
            MaskFolder(root, split, classes=("x", "y")).open()
    for split in ("train", "val"):
        folder(tmp_path / "below", {f"{split}/1": MASK})
        folder(tmp_path / "coco", {"1": MASK}, split, f"stuff/{split}")
    below = MaskFolder(str(tmp_path / "below"), "validation", classes=("x", "y")).open()
    assert len(below) == 1 and below.root.endswith("images/val")
    coco = MaskFolder(str(tmp_path / "coco"), "train", "{split}", "stuff/{split}").open()
    assert coco.classes == ("1", "2") and coco.root.endswith("coco/train")


def test_what_is_wrong_is_named(tmp_path):
    root = folder(tmp_path, {"a": MASK, "b": MASK[:4], "c": png(np.zeros((8, 12, 3), np.uint8)), "d": MASK})
    records = MaskFolder(root, "all", classes=("x", "y")).open()
    with pytest.raises(BadImageError, match=r"image 'b.jpg' .* mask is of 12 x 4 pixels and the image of 12 x 8"):
        records[1]
    with pytest.raises(BadImageError, match=r"image 'c.jpg' .* an image of colours \(RGB\)"):
        records[2]
    (tmp_path / "images" / "d.jpg").rename(tmp_path / "images" / "e.jpg")
    with pytest.raises(UserError, match=r"image 'e' has no mask in '.*masks' \(1 such\)"):
        MaskFolder(root, "all", classes=("x", "y")).open()
    (tmp_path / "images" / "e.jpg").unlink()
    with pytest.raises(UserError, match=r"mask 'd' has no image in '.*images' \(1 such\)"):
        MaskFolder(root, "all", classes=("x", "y")).open()
    kept = {"root": root, "split": "all", "unpaired": "skip"}
    assert len(MaskFolder(classes=("x", "y"), **kept).open()) == 3
    for fields, says in [({"classes": ("x",), "values": (255,)}, "255 is class 'x' and void as well"),
                         ({"classes": ("x",), "values": (0,)}, "0 is class 'x' and background as well"),
                         ({"classes": ("x", "y"), "values": (1, 1)}, "one value names two classes"),
                         ({"classes": ("x", "y"), "values": (1,)}, "1 numbers and classes 2 names"),
                         ({"classes": ("x", "x")}, "names the class 'x' twice"),
                         ({"classes": tuple(map(str, range(255))), "values": tuple(range(1000, 1255))}, "at most 254"),
                         ({"class_file": "no.txt"}, "cannot read"), ({"masks": "maks"}, "there is no folder")]:
        with pytest.raises(UserError, match=says):
            MaskFolder(**kept, **fields).open()
    (tmp_path / "classes.json").write_text(json.dumps([1, {"id": 2}]))
    (tmp_path / "bad.json").write_text(json.dumps([{"id": 2}]))
    with pytest.raises(UserError, match=re.escape("bad.json does not name classes ('name')")):
        MaskFolder(class_file="bad.json", **kept).open()


def test_the_classes_of_coco():
    assert len(COCO_PANOPTIC) == 133 and list(COCO_PANOPTIC) == sorted(COCO_PANOPTIC)
    assert COCO_PANOPTIC[1] == "person" and COCO_PANOPTIC[90] == "toothbrush" and COCO_PANOPTIC[200] == "rug-merged"
    assert len(set(COCO_PANOPTIC.values())) == 133 and all(name == name.strip() for name in COCO_PANOPTIC.values())
