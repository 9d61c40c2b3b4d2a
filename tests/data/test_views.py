"""Two views of an image: pure functions of seed and position, with the changes that they name."""

import cv2
import numpy as np
import pytest
from made_datasets import InMemory, NoiseDataset

from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.transforms.image import RandomResizedCrop
from big_vision_lite.data.transforms.photometric import ColorJitter, GaussianBlur, RandomGrey, Solarize
from big_vision_lite.data.transforms.views import TwoViews, byol_views, simclr_views
from big_vision_lite.errors import BadImageError, UserError

LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def made(transform, seed=0, step=1, process=0, processes=1):
    inputs = Input(InMemory(), transform, 8)
    maker = BatchMaker(NoiseDataset(40), inputs, lambda example: {"key": np.zeros(2)}, seed, process, processes)
    return maker(step)["image"]


@pytest.mark.parametrize("transform", [simclr_views(16, blur=True), byol_views(16, blur=True)], ids=("simclr", "byol"))
def test_views_are_a_pure_function_of_seed_and_position(transform):
    whole = made(transform)
    assert whole.shape == (8, 32, 16, 3)
    np.testing.assert_array_equal(whole, made(transform))
    np.testing.assert_array_equal(whole, np.concatenate([made(transform, process=p, processes=4) for p in range(4)]))
    for other in (made(transform, seed=1), made(transform, step=2)):
        assert (whole != other).any((1, 2, 3)).all()
    assert (whole[:, :16] != whole[:, 16:]).any((1, 2, 3)).all()
    # By hand: the first view and then the second, from the generator of the seed and the position.
    pixels = np.random.default_rng(3).integers(0, 256, (70, 50, 3), np.uint8)
    files = cv2.imencode(".png", pixels[:20, :30])[1].tobytes(), cv2.imencode(".jpg", pixels)[1].tobytes()
    for image in (pixels, *files):
        example = {"id": "number 3", "image": image, "labels": np.zeros(0, np.int32)}
        views, out = np.zeros((32, 16, 3), np.uint8), np.zeros((32, 16, 3), np.uint8)
        rng = np.random.Generator(np.random.Philox(key=(7, 11)))
        transform.first(example, rng, views[:16])
        (transform.second or transform.first)(example, rng, views[16:])
        transform(example, np.random.Generator(np.random.Philox(key=(7, 11))), out)
        np.testing.assert_array_equal(out, views)


def one_after_the_other(change, image, rng):
    """Colour jitter of floats, without matrices that combine the changes."""
    drawn = rng.random(9)
    pixels = image.astype(float)
    if drawn[0] >= change.probability:
        return pixels

    def brightness(pixels, by):
        return pixels * (1 + change.brightness * by)

    def contrast(pixels, by):
        mean = (pixels @ LUMA).mean()
        return mean + (1 + change.contrast * by) * (pixels - mean)

    def saturation(pixels, by):
        grey = (pixels @ LUMA)[..., None]
        return grey + (1 + change.saturation * by) * (pixels - grey)

    def hue(pixels, by):
        y, i, q = np.moveaxis(pixels @ YIQ.T, -1, 0)
        turned = (i + 1j * q) * np.exp(1j * np.deg2rad(change.hue * by))
        return np.stack([y, turned.real, turned.imag], -1) @ np.linalg.inv(YIQ).T

    changes = (brightness, contrast, saturation, hue)
    for _, which in sorted(zip(drawn[5:], range(4), strict=True)):
        pixels = changes[which](pixels, np.interp(drawn[1 + which], [0, 1], [-1, 1]))
    return np.clip(pixels, 0, 255)


@pytest.mark.parametrize("change", [ColorJitter(), ColorJitter(1.0, 0.4, 0.4, 0.2, 36)], ids=str)
def test_colour_jitter_equals_its_changes_one_after_the_other(change):
    image = np.random.default_rng(7).integers(0, 256, (9, 11, 3), np.uint8)
    for seed in range(40):
        out = image.copy()
        change(out, np.random.default_rng(seed))
        np.testing.assert_allclose(out, one_after_the_other(change, image, np.random.default_rng(seed)), atol=1)


def test_grey_solarized_and_blurred_images():
    image, rng = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8), np.random.default_rng(0)
    grey, bright, blurred, still = (image.copy() for _ in range(4))
    RandomGrey(1.0)(grey, rng)
    np.testing.assert_allclose(grey, np.repeat((image @ LUMA)[..., None], 3, 2), atol=1)
    Solarize(1.0, 100)(bright, rng)
    np.testing.assert_array_equal(bright, np.where(image >= 100, 255 - image, image))
    GaussianBlur(1.0, (1.0, 1.0), 0.5)(blurred, rng)
    weights = np.exp(-np.arange(-10, 11) ** 2 / 2)
    row = image[20].astype(float)
    across = [np.convolve(row[:, c], weights / weights.sum(), "same") for c in range(3)]
    flat = np.broadcast_to(row, (40, 40, 3)).astype(np.uint8).copy()  # equal rows: only the blur along them is seen
    GaussianBlur(1.0, (1.0, 1.0), 0.5)(flat, rng)
    np.testing.assert_allclose(flat[20, 12:28], np.stack(across, 1)[12:28], atol=1)
    assert blurred.std() < image.std() / 2
    for change in (RandomGrey(0.0), Solarize(0.0), GaussianBlur(0.0), ColorJitter(0.0)):
        change(still, rng)
    np.testing.assert_array_equal(still, image)


def test_what_is_refused():
    tiny = {"id": "dot", "image": np.zeros((1, 1, 3), np.uint8), "labels": np.zeros(0, np.int32)}
    with pytest.raises(BadImageError, match="'dot' cannot be used: it has 1 x 1 pixels"):
        simclr_views(16)(tiny, np.random.default_rng(0), np.zeros((32, 16, 3), np.uint8))
    with pytest.raises(UserError, match="expected equal sizes"):
        TwoViews(RandomResizedCrop(16), RandomResizedCrop(24))
    with pytest.raises(UserError, match="augment is for the views"):
        TwoViews(RandomResizedCrop(16), augment=(RandomGrey(),))
    for wrong in (lambda: ColorJitter(hue=181), lambda: RandomGrey(1.1), lambda: GaussianBlur(sigma=(2, 1)),
                  lambda: Solarize(threshold=256)):
        with pytest.raises(UserError, match="expected"):
            wrong()
