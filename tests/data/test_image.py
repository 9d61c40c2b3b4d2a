"""Windows of transforms for whole images: exact where nothing is drawn, and every place within reach where it is.

That pixels are those of the windows is in test_decode.py."""

import math

import numpy as np
import pytest

from big_vision_lite.data.source import Example
from big_vision_lite.data.transforms.image import (
    CentreCrop,
    RandomCropPadded,
    RandomResizedCrop,
    Resize,
    ResizeCrop,
    check_size,
)
from big_vision_lite.errors import UserError


def windows(transform, height, width, count=3000):
    rng = np.random.default_rng(0)
    crops, flips = zip(*(transform.window(height, width, rng) for _ in range(count)), strict=True)
    return np.array(crops).T, np.array(flips)


@pytest.mark.parametrize(("transform", "size", "expected"), [
    (ResizeCrop(340, 299, random=False), (680, 1020), (41, 61.5, 598, 897)),
    (ResizeCrop((100, 200), (50, 80), random=False), (200, 200), (50, 60, 100, 80)),
    (CentreCrop(224, 256), (400, 600), (25, 125, 350, 350)),
    (CentreCrop((100, 50), 200), (800, 400), (300, 150, 200, 100)),
    (Resize(20), (7, 9), (0, 0, 7, 9)),
    (RandomResizedCrop(flip=False), (10, 1000), (0, 493, 10, 13)),  # of no allowed aspect: the widest allowed
    (RandomResizedCrop(flip=False), (1000, 10), (493, 0, 13, 10)),
], ids=str)
def test_windows_that_are_not_drawn(transform, size, expected):
    window, flip = transform.window(*size, np.random.default_rng(0))
    assert window == pytest.approx(expected) and not flip


def test_random_crops_reach_every_place_with_equal_chances():
    """Up to the last row and column, and mirrored every second time."""
    (top, left, height, width), flips = windows(ResizeCrop(24, (20, 16)), 48, 72)
    down, across = 48 / 24, 72 / 24
    assert set(height) == {20 * down} and set(width) == {16 * across}
    for drawn, step, places in ((top, down, 5), (left, across, 9)):
        values, counts = np.unique(drawn, return_counts=True)
        np.testing.assert_allclose(values, np.arange(places) * step)
        assert np.abs(counts - 3000 / places).max() < 5 * math.sqrt(3000 / places)
    assert abs(flips.mean() - 0.5) < 0.05 and not windows(ResizeCrop(24, 20, flip=False), 9, 9)[1].any()
    small = RandomResizedCrop(8, area=(0.24, 0.26), aspect=(1.0, 1.0))  # of 6 x 6 pixels: windows of 3 x 3
    (top, left, height, width), flips = windows(small, 6, 6)
    assert set(height) == set(width) == {3} and abs(flips.mean() - 0.5) < 0.05
    assert set(top) == set(left) == {0, 1, 2, 3} and np.bincount(top.astype(int)).min() > 600
    assert len(set(zip(top, left, strict=True))) == 16


def test_areas_are_uniform_and_aspects_log_uniform():
    (_, _, height, width), _ = windows(RandomResizedCrop(area=(0.2, 0.4), aspect=(0.5, 2.0)), 2000, 2000)
    area, aspect = height * width / 2000**2, np.log2(width / height)
    np.testing.assert_allclose(np.quantile(area, (0, 0.25, 0.5, 0.75, 1)), np.linspace(0.2, 0.4, 5), atol=0.006)
    np.testing.assert_allclose(np.quantile(aspect, (0, 0.25, 0.5, 0.75, 1)), np.linspace(-1, 1, 5), atol=0.06)
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.06


def test_a_padded_crop_of_two_sides_is_mirrored_every_second_time():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    transform, rng = RandomCropPadded((4, 6), pad=1), np.random.default_rng(1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    legal = {}
    for top in range(3):
        for left in range(3):
            view = padded[top : top + 4, left : left + 6]
            legal |= {view.tobytes(): False}
            mirrored = np.pad(image[:, ::-1], ((1, 1), (1, 1), (0, 0)), mode="reflect")
            legal |= {mirrored[top : top + 4, left : left + 6].tobytes(): True}
    seen, out = [], np.zeros((4, 6, 3), np.uint8)
    for _ in range(600):
        example: Example = {"id": "x", "image": image, "labels": np.zeros(0, np.int32)}
        key = transform(example, rng, out)["key"]
        assert key.dtype == np.uint32 and key.shape == (2,)
        seen.append(out.tobytes())
    assert set(seen) == legal.keys() and abs(np.mean([legal[crop] for crop in seen]) - 0.5) < 0.1
    still = RandomCropPadded((4, 6), pad=0, flip=False)
    still(example, rng, out)
    np.testing.assert_array_equal(out, image)
    with pytest.raises(ValueError, match="out has shape"):
        still(example, rng, np.zeros((6, 4, 3), np.uint8))


def test_without_antialiasing_fine_structure_stays():
    stripes = np.zeros((63, 63, 3), np.uint8)
    stripes[:, ::2] = 255
    out = np.zeros((2, 21, 21, 3), np.uint8)
    for antialias in (True, False):
        transform = RandomResizedCrop(21, (1.0, 1.0), (1.0, 1.0), antialias=antialias, flip=False)
        transform({"id": "x", "image": stripes, "labels": np.zeros(0)}, np.random.default_rng(0), out[int(antialias)])
    np.testing.assert_array_equal(out[0], stripes[1::3, 1::3])  # the middle of three stripes
    assert np.ptp(out[1]) < 140


@pytest.mark.parametrize("size", [0, -1, True, (4, 0)])
def test_sizes_are_pixels(size):
    with pytest.raises(UserError, match=r"X.size is .*; expected pixels"):
        check_size("X.size", size)
    for whole in (1, (1, 2)):
        check_size("X.size", whole)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: CentreCrop(10, resize=9), r"CentreCrop.resize is 9, smaller than the crop of 10 taken from it"),
    (lambda: ResizeCrop((9, 20), 10), "smaller than the crop"),
    (lambda: ResizeCrop((20, 9), 10), "smaller than the crop"),
    (lambda: CentreCrop(10, resize=0), "CentreCrop.resize is 0"),
    (lambda: RandomResizedCrop(area=(0.0, 1.0)), r"area is .*0 < min <= max <= 1"),
    (lambda: RandomResizedCrop(area=(0.1, 1.1)), r"area is .*0 < min <= max <= 1"),
    (lambda: RandomResizedCrop(area=(0.2, 0.1)), "area is"),
    (lambda: RandomResizedCrop(aspect=(1.0, math.inf)), r"aspect is .*0 < min <= max$"),
    (lambda: RandomCropPadded(8, pad=8), "pad is 8; expected pixels from 0 to below size 8"),
    (lambda: RandomCropPadded((8, 4), pad=4), "pad is 4"), (lambda: RandomCropPadded(8, pad=-1), "pad is -1"),
])
def test_fields_out_of_range_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_defaults_are_those_of_the_papers():
    """Szegedy et al. (2015), Sun et al. (2017), He et al. (2016); 224 of 256 pixels for evaluation."""
    assert RandomResizedCrop() == RandomResizedCrop(224, (0.08, 1), (3 / 4, 4 / 3), flip=True, antialias=True)
    assert ResizeCrop() == ResizeCrop(340, 299, flip=True, random=True)
    assert CentreCrop() == CentreCrop(224, 256) and Resize() == Resize(224)
    assert RandomCropPadded() == RandomCropPadded(32, 4, flip=True)


def test_the_limits_of_fields_are_allowed():
    CentreCrop(10, resize=10), ResizeCrop(10, 10), RandomCropPadded(8, pad=7), RandomCropPadded(8, pad=0)
    RandomResizedCrop(area=(1.0, 1.0), aspect=(1.0, 1.0))
