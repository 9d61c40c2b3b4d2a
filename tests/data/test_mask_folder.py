"""Folders of images and masks: every way to define classes and splits, and errors."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.sources.coco_panoptic import COCO_PANOPTIC
from big_vision_lite.data.sources.mask_folder import MaskFolder
from big_vision_lite.data.transforms.joint import ScaleJitter
from big_vision_lite.errors import BadImageError, UserError

MASK = np.array([[0, 1, 1], [2, 2, 255]], np.uint8).repeat(4, 0).repeat(4, 1)


def png(pixels, palette=False) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if palette:
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + [7] * 759)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def folder(root, masks, images="images", of_masks="masks"):
    """One image of 12 x 8 pixels for each mask, by name."""
    for name, mask in masks.items():
        image_path, mask_path = root / images / f"{name}.jpg", root / of_masks / f"{name}.png"
        image_path.parent.mkdir(parents=True, exist_ok=True)
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 12, 3), 100, np.uint8)).save(image_path)
        mask_path.write_bytes(mask if isinstance(mask, bytes) else png(mask))
    return str(root)


def test_masks_become_class_masks(tmp_path):
    root = folder(tmp_path, {"b": MASK, "a": png(MASK, palette=True), "sub/c": np.zeros((8, 12), np.uint8)})
    dataset = MaskFolder(root, "all", classes=("cat", "dog")).open()
    assert [dataset[i]["id"] for i in range(3)] == ["a.jpg", "b.jpg", "sub/c.jpg"] and dataset.classes == ("cat", "dog")
    for i, labels in enumerate(([0, 1], [0, 1], [])):
        example = dataset[i]
        assert example["class_mask"].dtype == np.uint8 and example["labels"].tolist() == labels
    np.testing.assert_array_equal(dataset[0]["class_mask"], MASK)
    np.testing.assert_array_equal(dataset[1]["class_mask"], MASK)
    assert dataset.image_sizes().tolist() == [[8, 12]] * 3
    out, rng = np.empty((16, 16, 3), np.uint8), np.random.default_rng(0)
    transformed = ScaleJitter(16, (1.0, 1.0), flip=False)(dataset[0], rng, out)
    np.testing.assert_array_equal(transformed["class_mask"][:8, :12], MASK)
    assert MaskFolder(root, "all", classes=("cat", "cow")).open().fingerprint != dataset.fingerprint


@pytest.mark.parametrize(("file", "text"), [
    ("classes.txt", "cat\ndog\n"), ("classes.txt", "background\ncat\ndog"), ("classes.txt", "1 cat\n2: dog\n255 void"),
    ("classes.json", '["cat", "dog"]'), ("classes.json", '{"0": "background", "1": "cat", "2": "dog"}'),
    ("classes.json", '{"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}'), (None, None),
], ids=str)
def test_names_of_classes(tmp_path, file, text):
    root = folder(tmp_path, {"a": MASK})
    if file:
        (tmp_path / file).write_text(text)
    dataset = MaskFolder(root, "all").open()
    assert dataset.classes == (("cat", "dog") if file else ("1", "2"))
    np.testing.assert_array_equal(dataset[0]["class_mask"], MASK)


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
    with pytest.raises(BadImageError, match=r"image 'a.jpg' .* has values of no class: 90, 200; known are 0, 7: name"):
        MaskFolder(classes=("x",), values=(7,), **options).open()[0]
    no_background = MaskFolder(root, "all", classes=("a", "b"), background=None, others="void").open()
    assert no_background[0]["class_mask"][::4, ::6].tolist() == [[1, 255], [255, 255]]  # values count from 0


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
    for split, message in (("mini", "lists '999', which is not an image with"), ("trian", "did you mean 'train'")):
        with pytest.raises(UserError, match=message):
            MaskFolder(root, split, classes=("x", "y")).open()
    for split in ("train", "val"):
        folder(tmp_path / "below", {f"{split}/1": MASK})
        folder(tmp_path / "coco", {"1": MASK}, split, f"stuff/{split}")
    below = MaskFolder(str(tmp_path / "below"), "validation", classes=("x", "y")).open()
    assert len(below) == 1 and below.root.endswith("images/val")
    coco = MaskFolder(str(tmp_path / "coco"), "train", "{split}", "stuff/{split}").open()
    assert coco.classes == ("1", "2") and coco.root.endswith("coco/train")


def test_errors(tmp_path):
    root = folder(tmp_path, {"a": MASK, "b": MASK[:4], "c": png(np.zeros((8, 12, 3), np.uint8)), "d": MASK})
    dataset = MaskFolder(root, "all", classes=("x", "y")).open()
    with pytest.raises(BadImageError, match=r"image 'b.jpg' .* mask has 12 x 4 pixels and the image 12 x 8"):
        dataset[1]
    with pytest.raises(BadImageError, match=r"image 'c.jpg' .* is a colour image \(RGB\)"):
        dataset[2]
    (tmp_path / "images" / "d.jpg").rename(tmp_path / "images" / "e.jpg")
    with pytest.raises(UserError, match=r"image 'e' has no mask in '.*masks' \(1 such\)"):
        MaskFolder(root, "all", classes=("x", "y")).open()
    (tmp_path / "images" / "e.jpg").unlink()
    with pytest.raises(UserError, match=r"mask 'd' has no image in '.*images' \(1 such\)"):
        MaskFolder(root, "all", classes=("x", "y")).open()
    paired = {"root": root, "split": "all", "unpaired": "skip"}
    (tmp_path / "twice.txt").write_text("0 background\n1 x\n0 background\n2 y\n")
    assert len(MaskFolder(classes=("x", "y"), **paired).open()) == 3
    for fields, message in [({"classes": ("x",), "values": (255,)}, "255 is class 'x' and also void"),
                         ({"classes": ("x",), "values": (0,)}, "0 is class 'x' and also background"),
                         ({"classes": ("x", "y"), "values": (1, 1)}, "one value stands for two classes"),
                         ({"classes": ("x", "y"), "values": (1,)}, "1 numbers and classes 2 names"),
                         ({"classes": ("x", "x")}, "has the class 'x' twice"),
                         ({"classes": tuple(map(str, range(255))), "values": tuple(range(1000, 1255))}, "at most 254"),
                         ({"class_file": "twice.txt"}, "twice.txt: the value 0 is there twice"),
                         ({"class_file": "no.txt"}, "cannot read MaskFolder.class_file"),
                         ({"class_file": "images/a.jpg"}, "cannot read .* expected lines of names"),
                         ({"masks": "maks"}, "there is no folder")]:
        with pytest.raises(UserError, match=message):
            MaskFolder(**paired, **fields).open()
    for text in (json.dumps([{"id": 2}]), json.dumps([1, {"id": 2}])[:-1], "[]", "3"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=r"bad.json|has no classes"):
            MaskFolder(class_file="bad.json", **paired).open()


OTHER = np.where(MASK == 2, 255, 0).astype(np.uint8)


@pytest.mark.parametrize(("mask", "names", "fields", "message"), [
    (OTHER, None, {}, r"have values 0, 255, which are all background or void"),
    (OTHER, "cell", {}, r"have values 0, 255, none of which is a class; classes are 1 'cell'"),
    (OTHER, "255 cell", {}, r"the value 255 is class 'cell' and also void; change 'void'"),
    (OTHER, "1 red\n255 cell", {}, r"the value 255 is class 'cell' and also void"),
    (MASK, "cell", {}, r"some masks of split 'all' have values of no class: 2; known are 0, 1, 255"),
    (MASK, "cell", {"background": None}, r"values of no class: 1, 2; known are 0, 255"),
])
def test_masks_that_do_not_fit_the_classes(tmp_path, mask, names, fields, message):
    """All pixels would count as background, and mIoU be 1."""
    root = folder(tmp_path, {"a": mask, "b": mask})
    if names:
        (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(UserError, match=message):
        MaskFolder(root, "all", **fields).open()


def test_0_and_255_as_classes(tmp_path):
    root = folder(tmp_path, {"a": OTHER})
    for fields in ({}, {"classes": ("255",), "values": (255,)}):
        example = MaskFolder(root, "all", void=(), **fields).open()[0]
        np.testing.assert_array_equal(example["class_mask"], OTHER // 255)
        assert example["labels"].tolist() == [0]


def test_classes_in_no_mask_are_noted(tmp_path):
    root = folder(tmp_path, {"a": MASK, "b": MASK[::-1].copy(), "damaged": png(MASK)[:40]})
    dataset = MaskFolder(root, "all", classes=("x", "y", "z")).open()
    assert dataset.notes == ("classes in none of 3 masks that were looked at: 3 'z'",)
    assert MaskFolder(root, "all", classes=("x", "y")).open().notes == ()


def test_names_in_either_case_and_two_of_one_name(tmp_path):
    root = folder(tmp_path, {"Train/a": MASK, "Train/b": MASK})
    for suffix, upper in ((".jpg", ".JPG"), (".png", ".PNG")):
        for path in tmp_path.rglob(f"a{suffix}"):
            path.rename(path.with_suffix(upper))
    dataset = MaskFolder(root, classes=("x", "y")).open()
    assert [example["id"] for example in dataset.read(range(2))] == ["a.JPG", "b.jpg"]
    (tmp_path / "images" / "Train" / "a.bmp").touch()
    with pytest.raises(UserError, match=r"images/Train' has both 'a.JPG' and 'a.bmp'; expected one"):
        MaskFolder(root, classes=("x", "y")).open()
    (tmp_path / "images" / "Train" / "a.bmp").unlink()
    with pytest.raises(UserError, match=r"'c.jpg' and 'c.png'"):  # masks in the folder of the images
        for name in ("c.jpg", "c.png"):
            (tmp_path / "images" / "Train" / name).touch()
        MaskFolder(root, masks="images", classes=("x", "y")).open()


def test_names_that_only_look_the_same(tmp_path):
    root = folder(tmp_path, {"caf\u00e9": MASK})
    (tmp_path / "masks" / "caf\u00e9.png").rename(tmp_path / "masks" / "cafe\u0301.png")
    with pytest.raises(UserError, match=r"there is 'cafe\\u0301', which looks the same but is not 'caf\\xe9'"):
        MaskFolder(root, "all", classes=("x", "y")).open()


@pytest.mark.parametrize(("file", "text", "message"), [
    ("classes.txt", "70000 cat", "70000 is no value of a mask; expected 0 to 65,535"),
    ("classes.txt", "9" * 5000 + " cat", "cannot read .*classes.txt: Exceeds the limit .* expected lines of names"),
    ("classes.json", '[{"id": -1, "name": "cat"}]', "-1 is no value of a mask"),
    ("classes.json", '{"1e400": "cat"}', "cannot read .*classes.json: invalid literal"),
    ("classes.json", '[{"id": 1e400, "name": "cat"}]', "cannot read .*classes.json: "),
    ("classes.json", '[{"id": ' + "9" * 5000 + ', "name": "cat"}]', "cannot read .*classes.json: "),
    ("classes.json", '[{"x": ' + "[" * 100_000, "cannot read .*classes.json: it is nested too deeply"),
    ("classes.json", '{"categories": ' + "[" * 100_000, "cannot read .*classes.json: it is nested too deeply"),
    ("classes.json", '{"1": {"name": "cat"}}', "cannot read .*classes.json: Expected `str`, got `object`"),
    ("classes.json", "\udcff", "cannot read .*expected lines of names"),
    ("classes.txt", "", "MaskFolder has no classes"),
])
def test_malformed_names_of_classes(tmp_path, file, text, message):
    root = folder(tmp_path, {"a": MASK})
    (tmp_path / file).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        MaskFolder(root, "all").open()


def test_the_classes_of_coco():
    assert len(COCO_PANOPTIC) == 133 and list(COCO_PANOPTIC) == sorted(COCO_PANOPTIC)
    assert COCO_PANOPTIC[1] == "person" and COCO_PANOPTIC[90] == "toothbrush" and COCO_PANOPTIC[200] == "rug-merged"
    assert len(set(COCO_PANOPTIC.values())) == 133 and all(name == name.strip() for name in COCO_PANOPTIC.values())
