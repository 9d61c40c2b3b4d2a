"""Segmentation metrics: mIoU from sets of pixels, interpolation to the original size, and masks that are refused."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.masks import VOID
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.evaluation.segmentation import (
    ConfusionMatrix,
    check_masks,
    confusion,
    mask_at_original_size,
    true_mask,
)
from big_vision_lite.heads.segmentation.decoders import upsample
from big_vision_lite.heads.segmentation.drawing import palette


@pytest.mark.parametrize("seed", range(3))
def test_miou_is_that_of_sets_of_pixels(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 4, VOID], (3, 17, 23)).astype(np.uint8)
    wrong = rng.choice([0, 1, 2, 5], truth.shape)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth % 6, wrong).astype(np.uint8)
    names = ("background", "a", "b", "never", "missed", "invented")

    pixels = [(int(t), int(p)) for t, p in zip(truth.ravel(), predicted.ravel(), strict=True) if t != VOID]
    expected = {}
    for value, name in enumerate(names):
        union = sum(value in pair for pair in pixels)
        if union:
            expected[f"IoU/{name}"] = sum(pair == (value, value) for pair in pixels) / union

    matrix = ConfusionMatrix(names[1:])
    for t, p in zip(truth, predicted, strict=True):
        matrix.add_masks(t, p)
    result = matrix.result()
    assert {key: value for key, value in result.items() if key.startswith("IoU/")} == pytest.approx(expected)
    assert "IoU/never" not in result and result["IoU/invented"] == 0.0
    assert result["mIoU"] == pytest.approx(np.mean(list(expected.values())))
    del expected["IoU/invented"]
    assert result["mIoU_true"] == pytest.approx(np.mean(list(expected.values())))
    assert result["pixel_accuracy"] == pytest.approx(np.mean([t == p for t, p in pixels]))

    counts = np.asarray(confusion(jnp.asarray(truth), jnp.asarray(predicted, jnp.int32), len(names)))
    np.testing.assert_array_equal(counts.sum(0), matrix.counts)  # the device counts the same
    one = ConfusionMatrix(names[1:])
    one.add_masks(np.array([[1, 1, 2]], np.uint8), np.array([[1, 1, 0]], np.uint8))  # one pixel of two of the classes
    assert one.result() == pytest.approx({"mIoU": 1 / 3, "mIoU_true": 1 / 2, "pixel_accuracy": 2 / 3,
                                          "IoU/background": 0, "IoU/a": 1, "IoU/b": 0})
    assert ConfusionMatrix(names[1:]).result() == {"mIoU": None, "mIoU_true": None, "pixel_accuracy": None}


def test_scores_are_interpolated_directly_to_the_original_size():
    scores = np.random.default_rng(0).standard_normal((5, 6, 4)).astype(np.float32)
    # The image fills its canvas and keeps its size: as in the loss, for odd sizes too.
    full = np.asarray(upsample(jnp.asarray(scores[None]), (33, 41)))[0].argmax(-1)
    np.testing.assert_array_equal(mask_at_original_size(scores, (33, 41), (33, 41), (33, 41)), full)
    # It fills a part of it: that part.
    np.testing.assert_array_equal(mask_at_original_size(scores, (33, 41), (20, 30), (20, 30)), full[:20, :30])
    # Cells that are constant stay where they are at any scale.
    halves = np.full((4, 4, 2), 0.5, np.float32)
    halves[:, :, 1] = [1.0, 1.0, 0.0, 0.0]
    np.testing.assert_array_equal(mask_at_original_size(halves, (32, 32), (32, 16), (90, 50))[:, :49], 1)
    mask = mask_at_original_size(halves, (32, 32), (32, 32), (64, 100))
    assert mask[:, :49].all() and not mask[:, 51:].any()
    assert mask_at_original_size(scores[:1, :1], (8, 8), (8, 8), (3, 2)).shape == (3, 2)


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


class InMemory(Dataset):
    classes, multi_label, fingerprint = ("a", "b"), True, "masks in memory"

    def __init__(self, masks):
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Example:
        return {"id": f"{index}", "image": np.zeros((2, 3, 3), np.uint8), "labels": np.zeros(0, np.int32),
                "class_mask": self.masks[index]}


def test_one_pixel_is_enough_to_score():
    void = np.full((2, 3), VOID, np.uint8)
    one = np.where(np.arange(6).reshape(2, 3) == 4, 0, void).astype(np.uint8)
    check_masks(InMemory([void, b"damaged", one, np.full((2, 3), 9, np.uint8)]))  # the last is not looked at any more
    with pytest.raises(UserError, match="none of its 2 images has a pixel in its mask that is not void"):
        check_masks(InMemory([void, void]))
    with pytest.raises(BadImageError, match="'1' cannot be read: its mask"):
        check_masks(InMemory([void, b"damaged"]))
    with pytest.raises(UserError, match="'0' has no class mask"):
        check_masks(InMemory([None]))
    with pytest.raises(BadImageError, match="'0' cannot be read: its mask has 2 x 2 pixels and the image 3 x 2"):
        check_masks(InMemory([one[:, :2], void]))


def test_bad_masks_are_named():
    mask = np.array([[0, 1, 2], [VOID, 2, 1]], np.uint8)
    for form in (mask, mask.astype(np.uint16), png(mask)):
        np.testing.assert_array_equal(true_mask({"id": "a", "class_mask": form}, 2, (2, 3)), mask)
    coloured = Image.fromarray(mask)
    coloured.putpalette(palette().tobytes())
    buffer = io.BytesIO()
    coloured.save(buffer, "PNG")
    np.testing.assert_array_equal(true_mask({"id": "a", "class_mask": buffer.getvalue()}, 2, (2, 3)), mask)
    for example, classes, size, words in (
            ({}, 2, (2, 3), "no class mask"),
            ({"class_mask": mask}, 2, (3, 3), "has 3 x 2 pixels and the image 3 x 3"),
            ({"class_mask": mask}, 1, (2, 3), r"values 2; expected 0 \(background\), 1 to 1"),
            ({"class_mask": png(palette()[mask])}, 2, (2, 3), "is a colour image"),
            ({"class_mask": png(mask)[:40]}, 2, (2, 3), "cannot be decoded")):
        with pytest.raises(UserError, match=words):
            true_mask({"id": "a", **example}, classes, size)
