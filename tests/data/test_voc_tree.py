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
    for size in ("", VOC_SIZE.replace("20", "0"), VOC_SIZE.replace("10", "unknown")):  # then read from the image
        np.testing.assert_array_equal(voc(tmp_path, size=size).open()[0]["boxes"], example["boxes"])
    own = voc(tmp_path, [("zebra", 0, 1, 1, 5, 5), ("ant", 0, 0, -3, 25, 5), ("ant", 0, 8, 8, 7, 9)]).open()
    assert own.classes == ("ant", "zebra") and own.count == type(own.count)(boxes=3, clipped=1, dropped=1)
    assert own.fingerprint != dataset.fingerprint


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


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda f: (f / "Annotations/b.xml").write_text(VOC_XML.format(name="b", size="", objects="")) and
     (f / "JPEGImages/b.jpg").write_bytes(b"none"), r"b.xml has no <size>, and the image has no readable header"),
    (lambda f: (f / "Annotations/b.xml").unlink(), "cannot read .*b.xml.*each image of a split needs its XML"),
    (lambda f: (f / "Annotations/b.xml").write_text("<annotation><si"), "b.xml is not valid XML .*truncated"),
    (lambda f: (f / "JPEGImages/b.jpg").unlink(), r"lacks 1 images of split 'train', such as 'b'"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_text("b\na\nb\n"), "lists 'b' twice"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_text("\n"), "split 'train' of .* is empty"),
    (lambda f: (f / "ImageSets/Main/train.txt").rename(f / "ImageSets/Main/trian.txt"), "did you mean 'trian'"),
    (lambda f: (f / "Annotations/b.xml").write_text(VOC_XML.format(name="b", size=VOC_SIZE, objects="<object/>")),
     "object without a name or without four numbers"),
    (lambda f: (f / "Annotations/b.xml").write_text(VOC_XML.format(name="b", size=VOC_SIZE, objects=VOC_OBJECT.format(
        " ", 0, 1, 1, 2, 2))), "object without a name or without four numbers"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_bytes(b"\xe9\n"), "cannot read .*train.txt.*in UTF-8"),
])
def test_malformed_voc(tmp_path, spoil, message):
    source = voc(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        source.open()


def test_voc_with_an_unknown_class(tmp_path):
    with pytest.raises(UserError, match=r"b.xml has an object of class 'dog'; did you mean 'dogs'"):
        voc(tmp_path, classes=("cat", "dogs")).open()
    with pytest.raises(UserError, match=r"VocTree.classes has the class 'cat' twice"):
        voc(tmp_path, classes=("cat", "dog", "cat")).open()
