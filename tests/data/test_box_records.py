"""Annotations of photos that EXIF turns, against Pillow; and annotations of images of another size."""

import io
import json

import numpy as np
import pytest
from made_files import VOC_OBJECT, VOC_XML, jpeg, voc
from PIL import Image, ImageOps

from big_vision_lite.data.curation.steps import ClassSubset, curated
from big_vision_lite.data.decode import decode
from big_vision_lite.data.sources.box_records import INVERSE, turn_boxes
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.errors import BadImageError

STORED = np.zeros((48, 64), np.uint8)
STORED[8:24, 40:60] = 1
"""The stored pixels: height 48, width 64; the object is not in the middle in either direction."""


def encoded(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(STORED * 255).convert("RGB").save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def upright(orientation):
    """The object's mask as Pillow turns it."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded("PNG", orientation)))).convert("L")) >> 7


def box_of(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def coco(folder, image, mask, name="p.img"):
    """A file of one image with one object, annotated on ``mask``."""
    (folder / name).write_bytes(image)
    x1, y1, x2, y2 = (int(value) for value in box_of(mask))
    outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    (folder / "a.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0,
                         "segmentation": outline}], "categories": [{"id": 1, "name": "red"}]}))
    return CocoJson(str(folder / "a.json"), str(folder), masks=True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_masks_turn_with_the_photo(tmp_path, kind, orientation):
    """Annotated on the upright image; and, where that shows by its size, on the stored pixels."""
    image, expected = encoded(kind, orientation), upright(orientation)
    height, width = expected.shape
    for annotated in (expected, STORED) if orientation >= 5 else (expected,):
        dataset = coco(tmp_path, image, annotated).open()
        for _ in range(2):  # how it is turned is remembered
            example = dataset[0]
            assert decode(example["image"]).shape == (height, width, 3)
            np.testing.assert_allclose(example["boxes"] * [width, height, width, height], [box_of(expected)], atol=1e-4)
            np.testing.assert_array_equal(example["instance_mask"], expected)


def test_the_detector_gets_boxes_where_the_pixels_are(tmp_path):
    dataset = curated(coco(tmp_path, encoded("JPEG", 6), STORED).open(), (ClassSubset(("red",)),))
    out = np.zeros((64, 64, 3), np.uint8)
    transformed = ResizeToFit(64, 64, buckets=((64, 64),), random=False)(dataset[0], np.random.default_rng(0), out)
    np.testing.assert_allclose(transformed["boxes"], [box_of(out[..., 0] > 160)], atol=1)


def test_voc_masks_turn_too(tmp_path):
    voc(tmp_path)
    for orientation in (1, 5, 6, 7, 8):
        (tmp_path / "JPEGImages/b.jpg").write_bytes(encoded("JPEG", orientation))
        x1, y1, x2, y2 = box_of(STORED)
        (tmp_path / "Annotations/b.xml").write_text(VOC_XML.format(
            name="b", size="<size><width>64</width><height>48</height></size>",
            objects=VOC_OBJECT.format("dog", 0, x1 + 1, y1 + 1, x2, y2)))
        for folder in ("ImageSets/Segmentation", "SegmentationClass"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "ImageSets/Segmentation/train.txt").write_text("b\n")
        Image.fromarray(STORED * 12).save(tmp_path / "SegmentationClass/b.png")
        example, expected = VocTree(str(tmp_path), "train", masks="class").open()[0], upright(orientation)
        height, width = expected.shape
        np.testing.assert_array_equal(example["class_mask"], expected * 12)
        np.testing.assert_allclose(example["boxes"] * [width, height, width, height], [box_of(expected)], atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 48), (24, 32), (48, 63)])  # transposed without EXIF, scaled, and one off
def test_annotations_of_another_size_are_refused(tmp_path, shape):
    mask = np.zeros(shape, np.uint8)
    mask[2:9, 3:9] = 1
    with pytest.raises(BadImageError, match=rf"'p.img' .*64 x 48 pixels, .* of an image of {shape[1]} x {shape[0]};"):
        coco(tmp_path, encoded("JPEG", 1), mask).open()[0]
    voc(tmp_path)
    (tmp_path / "JPEGImages/b.jpg").write_bytes(jpeg(21, 10))
    with pytest.raises(BadImageError, match=r"'b.jpg' cannot be read: it has 21 x 10 pixels, .* image of 20 x 10;"):
        VocTree(str(tmp_path), "train").open()[0]


@pytest.mark.parametrize("orientation", INVERSE)
def test_turning_back(orientation):
    boxes = np.sort(np.random.default_rng(0).uniform(size=(9, 2, 2)), 1).reshape(9, 4)
    turned = turn_boxes(boxes, orientation)
    assert (turned[:, 2:] > turned[:, :2]).all() and not np.allclose(turned, boxes)
    np.testing.assert_allclose(turn_boxes(turned, INVERSE[orientation]), boxes)
