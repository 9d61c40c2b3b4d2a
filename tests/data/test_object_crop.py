"""Crops around an object: pixels and keypoints move together."""

import io

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.transforms.joint import GREY
from big_vision_lite.data.transforms.object_crop import ObjectCrop, moved
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.errors import BadImageError, UserError


def blobs(height=240, width=360, box=(0.3, 0.2, 0.6, 0.7)):
    """An image with a red, a green and a blue blob within the box."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = np.array(box) * ([width, height] * 2)
    points = np.array([(x1 + 0.2 * (x2 - x1), y1 + 0.3 * (y2 - y1)), (x1 + 0.8 * (x2 - x1), y1 + 0.35 * (y2 - y1)),
                       (x1 + 0.5 * (x2 - x1), y1 + 0.8 * (y2 - y1))])
    rows, columns = np.mgrid[:height, :width] + 0.5
    for channel, (x, y) in enumerate(points):
        image[..., channel] = 255 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * (width / 60) ** 2))
    keypoints = np.concatenate([points / [width, height], [[2], [1], [2]]], 1)
    keypoints = np.concatenate([keypoints, np.zeros((1, 3))])[None].astype(np.float32)
    return {"id": "blobs#0", "image": image, "labels": np.array([0], np.int32), "box_labels": np.array([0], np.int32),
            "boxes": np.array([box], np.float32), "keypoints": keypoints, "object_index": np.int32(0),
            "keypoint_mirror": np.array([1, 0, 2, 3], np.int32), "area": np.ones(1, np.float32)}


def apply(transform, example, seed):
    out = np.full(transform.shape, 77, np.uint8)
    return transform(example, np.random.default_rng(seed), out), out


def centre(channel):
    rows, columns = np.mgrid[:channel.shape[0], :channel.shape[1]] + 0.5
    weights = channel.astype(np.float64) - channel.min()
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("transform", [
    ObjectCrop((128, 96)), ObjectCrop((353, 257), enlarge=1.0, scale=(1.0, 1.5)),
    ObjectCrop((64, 48), rotation=40.0), ObjectCrop((96, 96), rotation=180.0, scale=(1.2, 2.0), random=True),
    ObjectCrop((128, 96), random=False)], ids=str)
def test_keypoints_are_where_the_pixels_are(transform):
    example, flipped = blobs(), 0
    for seed in range(20):
        found, out = apply(transform, example, seed)
        points = found["keypoints"]
        swapped = points[0, 2] == 1  # what was on the right
        flipped += swapped
        for k, channel in enumerate((1, 0, 2) if swapped else (0, 1, 2)):
            if (points[k, :2] > 6).all() and (points[k, :2] < np.array(out.shape[1::-1]) - 6).all():
                image = np.where(out == GREY, 0, out)[..., channel]  # without the padding
                x, y = points[k, :2].astype(int)
                window = image[max(y - 9, 0):y + 10, max(x - 9, 0):x + 10]
                at = centre(window) + np.maximum([x - 9, y - 9], 0)
                assert np.abs(at - points[k, :2]).max() < 0.75, (seed, k)
        assert not points[3].any() and found["key"].shape == (2,)
        back = moved(points[:3, :2].astype(np.float64), found["matrix"].astype(np.float64))
        original = example["keypoints"][0, [1, 0, 2] if swapped else [0, 1, 2], :2] * [360, 240]
        np.testing.assert_allclose(back, original, atol=1e-3)
        np.testing.assert_allclose(found["box"], [108, 48, 216, 168], atol=1e-3)
    assert flipped == 0 if not transform.random else 3 < flipped < 17


def test_the_box_fills_the_crop():
    found, _ = apply(ObjectCrop((120, 100), enlarge=1.25, random=False), blobs(), 0)  # of a box of 108 x 120
    corners = moved(np.array([(0, 0), (100, 120)], np.float64), found["matrix"].astype(np.float64))
    # 108 wide in the shape of the crop is 129.6 high; both times 1.25, around the same centre.
    np.testing.assert_allclose(corners, [(162 - 67.5, 108 - 81), (162 + 67.5, 108 + 81)], atol=1e-3)
    scales = [1 / apply(ObjectCrop((120, 100), scale=(0.5, 2.0), flip=False), blobs(), s)[0]["matrix"][0, 0]
              for s in range(200)]
    np.testing.assert_allclose(1 / np.array([max(scales), min(scales)]) / 1.35, (0.5, 2.0), atol=0.05)
    angles = []
    for seed in range(200):
        (a, _, _), (b, _, _) = apply(ObjectCrop(64, rotation=30, flip=False), blobs(), seed)[0]["matrix"]
        angles.append(np.degrees(np.arctan2(b, a)))
    np.testing.assert_allclose((min(angles), max(angles)), (-30, 30), atol=2)


def test_without_a_box_the_image_is_the_box_and_beyond_it_is_padding():
    example = {key: value for key, value in blobs().items() if key in ("id", "image", "labels")}
    example["image"][:] = (200, 10, 10)
    found, out = apply(ObjectCrop((96, 96), enlarge=1.0, random=False), example, 0)
    np.testing.assert_allclose(found["box"], [0, 0, 360, 240])
    assert "keypoints" not in found and found["box_score"] == 1
    assert (out[:14] == GREY).all() and (out[-14:] == GREY).all() and (out[18:-18] == (200, 10, 10)).all()
    far = blobs() | {"boxes": np.array([[2.0, 2.0, 2.5, 2.5]], np.float32)}
    assert (apply(ObjectCrop((64, 64), random=False), far, 0)[1] == GREY).all()


def test_a_large_photo_shrinks_without_aliases():
    """The mean of a fine pattern, from a file of which a part is decoded."""
    stripes = np.zeros((1200, 1600, 3), np.uint8)
    stripes[:, ::2] = 255
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "PNG")
    example = {"id": "s", "image": buffer.getvalue(), "labels": [0], "boxes": np.array([[0.2, 0.2, 0.8, 0.8]])}
    _, out = apply(ObjectCrop((60, 80), enlarge=1.0, random=False), example, 0)
    assert np.abs(out.astype(int) - 127).max() < 20


def test_the_same_generator_gives_the_same_crop():
    for seed in range(3):
        (a, x), (b, y) = (apply(ObjectCrop(64, augment=(Photometric(),), rotation=20), blobs(), seed) for _ in range(2))
        np.testing.assert_array_equal(x, y)
        assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_errors_name_the_image_or_the_field():
    with pytest.raises(BadImageError, match=r"image 'blobs#0' cannot be read"):
        apply(ObjectCrop(64), blobs() | {"image": b"\xff\xd8 no more"}, 0)
    with pytest.raises(UserError, match=r"'blobs#0' has 2 boxes; ObjectCrop needs one example per object: PerObject"):
        apply(ObjectCrop(64), blobs() | {"boxes": np.zeros((2, 4), np.float32)}, 0)
    for fields, message in [({"size": 0}, "ObjectCrop.size"), ({"scale": (2, 1)}, "scale is"),
                            ({"enlarge": 0.0}, "enlarge=0.0"), ({"rotation": 200.0}, "rotation=200.0")]:
        with pytest.raises(UserError, match=message):
            ObjectCrop(**fields)
