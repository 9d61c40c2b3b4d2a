"""VOC trees: annotations, splits and masks, and what is refused."""

import pickle

import numpy as np
import pytest
from made_files import VOC_OBJECT, VOC_SIZE, VOC_XML, voc
from PIL import Image

from big_vision_lite.data.sources.voc_tree import VOC_CLASSES, VocTree
from big_vision_lite.errors import BadImageError, UserError


def test_voc(tmp_path):
    dataset = voc(tmp_path).open()
    assert dataset.classes == VOC_CLASSES and len(dataset) == 1
    example = dataset[0]
    assert example["id"] == "b.jpg" and example["difficult"].tolist() == [False, True]
    assert [dataset.classes[i] for i in example["box_labels"]] == ["dog", "cat"]
    np.testing.assert_allclose(example["boxes"], [[0, 0, 1, 1], [0.1, 0.1, 0.3, 0.5]], atol=1e-7)  # from pixel 1 to 10
    assert len(VocTree(str(tmp_path), "all").open()) == 2
    for size in ("", VOC_SIZE.replace("20", "0"), VOC_SIZE.replace("10", "")):  # then read from the image
        np.testing.assert_array_equal(voc(tmp_path, size=size).open()[0]["boxes"], example["boxes"])
    own = voc(tmp_path, [("zebra", 0, 1, 1, 5, 5), ("ant", 0, 0, -3, 25, 5), ("ant", 0, 8, 8, 7, 9)]).open()
    assert own.classes == ("ant", "zebra") and own.count == type(own.count)(boxes=3, clipped=1, dropped=1)
    assert own.fingerprint != dataset.fingerprint
    for text, difficult in (("0", False), ("1", True), ("", False)):
        example = voc(tmp_path, [("dog", text, 1.5, "\n 1 ", 5, "5.25")], VOC_SIZE.replace("20", " 20.0 ")).open()[0]
        assert example["difficult"].tolist() == [difficult]
        np.testing.assert_allclose(example["boxes"], [[0.025, 0, 0.25, 0.525]], atol=1e-7)


def test_voc_lists_with_flags_and_names_with_spaces(tmp_path):
    voc(tmp_path)
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (tmp_path / folder / f"b.{ending}").rename(tmp_path / folder / f"b 1.{ending}")
        (tmp_path / folder / f"._a.{ending}").write_bytes(b"\0")  # as macOS creates
    sets = tmp_path / "ImageSets/Main"
    (sets / "cat_train.txt").write_text("\ufeffa -1\nb 1\n")
    (sets / "cat_val.txt").write_text("a  0\nb 1  1\n")
    for split, ids in (("cat_train", ["b 1.jpg"]), ("cat_val", ["a.jpg", "b 1.jpg"]), ("all", ["a.jpg", "b 1.jpg"])):
        dataset = VocTree(str(tmp_path), split).open()
        assert [dataset.labels(i)[0] for i in range(len(dataset))] == ids


@pytest.mark.parametrize(("masks", "folder"), [("class", "SegmentationClass"), ("class_aug", "SegmentationClassAug")])
def test_voc_masks(tmp_path, masks, folder):
    voc(tmp_path)
    source = VocTree(str(tmp_path), "val", masks=masks)
    with pytest.raises(UserError, match=r"there is no ImageSets/Segmentation/val.txt"):
        source.open()
    (tmp_path / "ImageSets/Segmentation").mkdir()
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\n")
    with pytest.raises(UserError, match=rf"1 masks of split 'val' are missing, such as .*{folder}/b.png'"):
        source.open()
    pixels = np.zeros((10, 20), np.uint8)
    pixels[2:5, 3:9], pixels[:, 19] = VOC_CLASSES.index("cat") + 1, 255
    image = Image.fromarray(pixels)
    if masks == "class":
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    (tmp_path / folder).mkdir()
    image.save(tmp_path / folder / "b.png")
    dataset = source.open()
    example = pickle.loads(pickle.dumps(dataset))[0]
    assert example["id"] == "b.jpg" and example["class_mask"].dtype == np.uint16
    np.testing.assert_array_equal(example["class_mask"], pixels)
    assert dataset.fingerprint != VocTree(str(tmp_path), "train").open().fingerprint  # also of b alone
    (tmp_path / folder / "b.png").write_bytes(b"none")
    with pytest.raises(BadImageError, match=r"'b.jpg' cannot be read: its mask cannot be decoded"):
        dataset[0]
    voc(tmp_path, [("zebra", 0, 1, 1, 5, 5)])
    with pytest.raises(UserError, match=r"classes other than VOC's, such as 'zebra'; set VocTree.classes"):
        source.open()


def b_xml(objects="", size=VOC_SIZE, head=""):
    """Writes b.xml, the only file of the split."""
    def write(folder):
        (folder / "Annotations/b.xml").write_text(head + VOC_XML.format(name="b", size=size, objects=objects))
    return write


def box(*corners, name="dog", difficult=0):
    return VOC_OBJECT.format(name, difficult, *corners)


NESTED = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 12))


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda f: b_xml(size="")(f) or (f / "JPEGImages/b.jpg").write_bytes(b"none"),
     r"b.xml has no <size>, and the image has no readable header"),
    (lambda f: (f / "Annotations/b.xml").unlink(), "cannot read .*b.xml.*each image of a split needs its XML"),
    (lambda f: (f / "Annotations/b.xml").write_text("<annotation><si"), "cannot read .*b.xml: unclosed.*be cut off"),
    (lambda f: (f / "Annotations/b.xml").write_text(""), "cannot read .*b.xml: no element found"),
    (lambda f: (f / "Annotations/b.xml").write_text("<html/>"), "b.xml: it holds <html>; expected VOC's <annotation>"),
    (b_xml(head='<?xml version="1.0" encoding="klingon"?>'), "b.xml: unknown encoding.* other than UTF-8"),
    (b_xml(head='<?xml version="1.0" encoding="gb2312"?>'), "b.xml: multi-byte encodings are not supported"),
    (b_xml("<object><name>\0</name></object>"), "b.xml: not well-formed"),
    (b_xml("<x>" * 200_000), "b.xml: mismatched tag"),
    (b_xml("<object><name>&e11;</name></object>", head=f'<!DOCTYPE a [<!ENTITY e0 "dog">{NESTED}]>'),
     "b.xml: limit on input amplification"),
    (b_xml("<object><name>&file;</name></object>", head='<!DOCTYPE a [<!ENTITY file SYSTEM "file:///etc/passwd">]>'),
     "b.xml: undefined entity"),
    (lambda f: (f / "JPEGImages/b.jpg").unlink(), r"lacks 1 images of split 'train', such as 'b'"),
    (lambda f: (f / "JPEGImages/b.png").write_bytes(b""), r"has both 'b.jpg' and 'b.png'"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_text("b\na\nb\n"), "lists 'b' twice"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_text("\n"), "split 'train' of .* is empty"),
    (lambda f: (f / "ImageSets/Main/train.txt").rename(f / "ImageSets/Main/trian.txt"), "did you mean 'trian'"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_bytes(b"\xe9\n"), "cannot read .*train.txt.*in UTF-8"),
    (b_xml("<object/>"), r"missing required field `xmin` - at `\$.object\[0\].bndbox`"),
    (b_xml("<object><name>dog</name></object>"), r"missing required field `xmin` - at `\$.object\[0\].bndbox`"),
    (b_xml(box(1, 1, 2, 2) + box(1, 1, 2, 2, name=" ")), r"missing required field `name` - at `\$.object\[1\]`"),
    (b_xml(box(1, 1, 2, 2, name="do\ng")), r"b.xml has the class 'do\\ng'; expected a line of text"),
    (b_xml(box("nan", 1, 2, 2)), r"Expected `float` >= -1000000.0 - at `\$.object\[0\].bndbox.xmin`"),
    (b_xml(box(1, 1, "inf", 2)), r"Expected `float` <= 1000000.0 - at `\$.object\[0\].bndbox.xmax`"),
    (b_xml(box(1, "1e400", 2, 2)), r"out of range - at `\$.object\[0\].bndbox.ymin`"),
    (b_xml(box(1, 1, 2, "two")), r"Expected `float`, got `str` - at `\$.object\[0\].bndbox.ymax`"),
    (b_xml(box(1, 1, 2, 2, difficult="no")), r"Invalid enum value 'no' - at `\$.object\[0\].difficult`"),
    (b_xml(box(1, 1, 2, 2), VOC_SIZE.replace("20", "wide")), r"Expected `int`, got `str` - at `\$.size.width`"),
    (b_xml(box(1, 1, 2, 2), VOC_SIZE.replace("20", "20.5")), r"Expected `int`, got `str` - at `\$.size.width`"),
    (b_xml(box(1, 1, 2, 2), VOC_SIZE.replace("20", "10000000000")), r"<= 2147483647 - at `\$.size.width`"),
    (b_xml(box(1, 1, 2, 2), VOC_SIZE.replace("20", "-20")), r"Expected `int` >= 0 - at `\$.size.width`"),
    (b_xml(box(20, 1, 3, 5) + box(9, 5, 2, 8)),
     "split 'train' of .*: all 2 boxes are empty; of the first, which spans 19 to 3 across .*xmin is not below xmax"),
    (b_xml(box(1, 9, 4, 2)), "all 1 boxes are empty; .* 8 to 2 down, ymin is not below ymax"),
])
def test_malformed_voc(tmp_path, spoil, message):
    source = voc(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        source.open()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_voc_with_an_unknown_class(tmp_path):
    with pytest.raises(UserError, match=r"b.xml has an object of class 'dog'; did you mean 'dogs'"):
        voc(tmp_path, classes=("cat", "dogs")).open()
    with pytest.raises(UserError, match=r"VocTree.classes has the class 'cat' twice"):
        voc(tmp_path, classes=("cat", "dog", "cat")).open()
