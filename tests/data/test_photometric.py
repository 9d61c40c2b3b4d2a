"""Photometric distortion does what its fields say, and is part of a batch and of a training run."""

import dataclasses

import numpy as np
import pytest

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded, ResizeCrop
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.loop import train
from big_vision_lite.training.optimizers import SGD

SCENES = EmojiScenes("train", 16, size=32, classes=4)
ALWAYS = (Photometric(probability=1.0),)


def test_photometric_changes_are_what_they_say():
    rng, image = np.random.default_rng(0), np.random.default_rng(1).integers(60, 190, (16, 16, 3), np.uint8)

    def changed(**ranges):
        none = {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}
        out = image.copy()
        Photometric(probability=1.0, **{**none, **ranges})(out, rng)
        return out.astype(float)

    luma = image @ [0.299, 0.587, 0.114]
    np.testing.assert_array_equal(changed(), image)
    shift = changed(brightness=32) - image
    assert np.ptp(shift) == 0 and 0 < abs(shift[0, 0, 0]) <= 32
    np.testing.assert_allclose(changed(contrast=(0.5, 0.5)), luma.mean() + 0.5 * (image - luma.mean()), atol=1)
    np.testing.assert_allclose(changed(saturation=(0.0, 0.0)), np.repeat(luma[..., None], 3, 2), atol=1)
    turned = changed(hue=18)
    np.testing.assert_allclose(turned @ [0.299, 0.587, 0.114], luma, atol=1)
    assert np.abs(turned - image).max() > 2
    still = image.copy()
    Photometric(probability=0.0)(still, rng)
    np.testing.assert_array_equal(still, image)
    with pytest.raises(UserError, match="min, max"):
        Photometric(contrast=(2, 1))


LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def one_after_the_other(change, image, rng):
    """The four changes of floats, without matrices that combine them."""
    applied, drawn = rng.random(4) < change.probability, rng.random(4)
    pixels = image.astype(float)
    if applied[0]:
        pixels = pixels + np.interp(drawn[0], [0, 1], [-change.brightness, change.brightness])
    if applied[1]:
        mean = (pixels @ LUMA).mean()
        pixels = mean + np.interp(drawn[1], [0, 1], change.contrast) * (pixels - mean)
    if applied[2]:
        grey = (pixels @ LUMA)[..., None]
        pixels = grey + np.interp(drawn[2], [0, 1], change.saturation) * (pixels - grey)
    if applied[3]:
        angle = np.deg2rad(np.interp(drawn[3], [0, 1], [-change.hue, change.hue]))
        y, i, q = np.moveaxis(pixels @ YIQ.T, -1, 0)
        turned = (i + 1j * q) * np.exp(1j * angle)
        pixels = np.stack([y, turned.real, turned.imag], -1) @ np.linalg.inv(YIQ).T
    return np.clip(pixels, 0, 255)


@pytest.mark.parametrize("change", [
    Photometric(), Photometric(1.0), Photometric(1.0, 60, (0.2, 0.4), (1.5, 2.5), 90), Photometric(0.3, 0, (2, 3)),
], ids=str)
def test_photometric_equals_its_changes_one_after_the_other(change):
    image = np.random.default_rng(7).integers(0, 256, (9, 11, 3), np.uint8)
    for seed in range(40):
        out = image.copy()
        change(out, np.random.default_rng(seed))
        np.testing.assert_allclose(out, one_after_the_other(change, image, np.random.default_rng(seed)), atol=1)
    first, second = np.random.default_rng(1), np.random.default_rng(1)
    change(image.copy(), first)
    assert first.random() == second.random(9)[8]  # always eight draws


def test_the_default_ranges_are_those_of_ssd():
    assert Photometric() == Photometric(0.5, 32, (0.5, 1.5), (0.5, 1.5), 18)


@pytest.mark.parametrize("fields", [
    {"probability": 1.01}, {"probability": -0.1}, {"brightness": 256}, {"brightness": -1}, {"hue": 181}, {"hue": -1},
    {"contrast": (-0.1, 1)}, {"saturation": (1.0, 0.9)}, {"contrast": (1, float("inf"))},
], ids=str)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(UserError, match="expected a probability up to 1"):
        Photometric(**fields)
    Photometric(1.0, 255, (0, 0), (0, 0), 180), Photometric(0.0, 0, hue=0)


def batch(transform, seed=0, step=1):
    inputs = Input(SCENES, transform, 8)
    return BatchMaker(inputs.open(), inputs, lambda example: {"labels": example["labels"][:1]}, seed)(step)


def test_batches_for_classification_are_augmented_by_seed_and_position():
    plain, first, second = batch(RandomCropPadded(32)), *(batch(RandomCropPadded(32, augment=ALWAYS)) for _ in range(2))
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["labels"], plain["labels"])
    assert (first["image"] != plain["image"]).any((1, 2, 3)).all()
    for changed in ({"seed": 1}, {"step": 2}):
        other = batch(RandomCropPadded(32, augment=ALWAYS), **changed)
        assert (other["image"] != first["image"]).any((1, 2, 3)).all()
    # The same crop, with other colours: distortion is a linear map of colours, clipped.
    pixels = np.column_stack([plain["image"][0].reshape(-1, 3), np.ones(32 * 32)])
    changed = first["image"][0].reshape(-1, 3).astype(float)
    unclipped = ((changed > 0) & (changed < 255)).all(1)
    matrix, *_ = np.linalg.lstsq(pixels[unclipped], changed[unclipped])
    np.testing.assert_allclose(pixels[unclipped] @ matrix, changed[unclipped], atol=1.5)
    still = ResizeCrop(40, 32, random=False)
    np.testing.assert_array_equal(batch(still)["image"], batch(dataclasses.replace(still, augment=ALWAYS))["image"])


def test_a_run_trains_on_augmented_images(tmp_path):
    inputs = Input(SCENES, RandomCropPadded(32, augment=ALWAYS), 8)
    experiment = Experiment(inputs, {"validation": Input(SCENES, RandomCropPadded(32), 8)}, ResNet(10, width=1 / 16),
                            Classification(), SGD(0.1), steps=2)
    assert np.isfinite(train(experiment, tmp_path)["validation/loss"])
