"""Mean intersection over union of segmentation: one confusion matrix over all pixels of a set."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, Int, UInt8

from big_vision_lite.data.joint_transforms import VOID, check_mask_values, class_mask
from big_vision_lite.data.source import Example
from big_vision_lite.errors import UserError

BACKGROUND = "background"
"""What a mask has where no class is: value 0; class c is value c + 1."""


class ConfusionMatrix:
    """Pixels by true and by predicted class, over a whole set.

    The mean of IoU over images is another figure; VOC's, and what tables give, comes from counts over the set.

    Args:
      classes: names, without the background, which is counted before them.
    """

    def __init__(self, classes: Sequence[str]):
        self.names = (BACKGROUND, *classes)
        self.counts = np.zeros((len(self.names),) * 2, np.int64)

    def add(self, counts: Int[np.ndarray, "k k"]) -> None:
        """Add pixels counted elsewhere: rows are true, columns predicted classes."""
        self.counts += counts

    def add_masks(self, truth: UInt8[np.ndarray, "h w"], predicted: UInt8[np.ndarray, "h w"]) -> None:
        """Add an image's pixels. Void in ``truth`` is left out; so it is in no union either."""
        kinds = len(self.names)
        counted = truth != VOID
        pairs = truth[counted].astype(np.int64) * kinds + predicted[counted]
        self.add(np.bincount(pairs, minlength=kinds * kinds).reshape(kinds, kinds))

    def result(self) -> dict[str, float]:
        """Figures from 0 to 1.

        "mIoU": of each class (the background is one) the pixels that are and are called so, over those that are or
        are called so; the mean over classes that occur in the truth or in the predictions. VOC's devkit averages over
        all 21, which all occur in its sets. "mIoU_true": over classes that occur in the truth, as some tools report.
        "pixel_accuracy": share of pixels that are called what they are. "IoU/NAME": of each class that occurs.
        All are 0 for a set without any pixel that counts.
        """
        both = np.diag(self.counts).astype(np.float64)
        true, called = self.counts.sum(1), self.counts.sum(0)
        either = true + called - both
        iou = both / np.maximum(either, 1)
        return {
            "mIoU": _mean(iou[either > 0]),
            "mIoU_true": _mean(iou[true > 0]),
            "pixel_accuracy": float(both.sum() / max(self.counts.sum(), 1)),
            **{f"IoU/{name}": float(value) for name, value, n in zip(self.names, iou, either, strict=True) if n},
        }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def confusion(truth: UInt8[Array, "b h w"], predicted: Int[Array, "b h w"], kinds: int) -> Int[Array, "b k k"]:
    """Each image's counts for a `ConfusionMatrix`, on the device: ``kinds`` classes with the background."""
    counted = truth != VOID
    pairs = jnp.where(counted, truth.astype(jnp.int32) * kinds + predicted.astype(jnp.int32), kinds * kinds)

    def count(pairs: Array) -> Array:
        return jnp.zeros(kinds * kinds + 1, jnp.int32).at[pairs.ravel()].add(1)

    return jax.vmap(count)(pairs)[:, :-1].reshape(-1, kinds, kinds)


def mask_at_original_size(scores: Float32[np.ndarray, "gh gw k"], canvas: tuple[int, int], size: tuple[int, int],
                          original: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The best class of each pixel of an image as it is stored.

    Scores are interpolated, not masks: bilinear, with pixels as squares whose centres lie at halves and the outermost
    cells continued to the border (``align_corners=False``), and one class at a time, so that memory stays that of the
    image.

    Args:
      scores: on a grid over the network's input.
      canvas: (height, width) of that input in pixels.
      size: (height, width) of the part of it that the image takes, from the top left.
      original: (height, width) of the image as stored.
    """
    rows, columns = (bilinear(*sides) for sides in zip(scores.shape[:2], canvas, size, original, strict=True))
    best = np.full(original, -np.inf, np.float32)
    found = np.zeros(original, np.uint8)
    for kind in range(scores.shape[2]):
        values = rows @ scores[:, :, kind] @ columns.T
        found[values > best] = kind
        np.maximum(best, values, out=best)
    return found


def bilinear(cells: int, canvas: int, size: int, original: int) -> Float32[np.ndarray, "original cells"]:
    """Weights of each of ``cells``, which cover ``canvas`` pixels, for each of ``original`` pixels, which cover the
    first ``size`` of them; along one axis."""
    place = (np.arange(original) + 0.5) * (size / original) * (cells / canvas) - 0.5
    place = np.clip(place, 0, cells - 1)
    low = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    weights = np.zeros((original, cells), np.float32)
    pixels = np.arange(original)
    weights[pixels, np.minimum(low + 1, cells - 1)] = place - low
    weights[pixels, low] += 1 - (place - low)
    return weights


def true_mask(example: Example, classes: int, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The class mask of a stored example, whose pixels the official score counts.

    Args:
      classes: how many, without the background.
      size: (height, width) of its image in pixels.

    Raises:
      UserError: there is no mask, or it is not one number a pixel, of its image's size and of known classes.
    """
    if example.get("class_mask") is None:
        raise UserError(f"image {example['id']!r} has no class mask; a score of segmentation needs a source that gives "
                        "one for every image, such as MaskFolder or VocTree(masks='class'), and no curation but a "
                        "Vocabulary that changes labels")
    mask = class_mask(example, size)
    check_mask_values(example["id"], mask, classes)
    return mask
