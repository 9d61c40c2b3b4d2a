"""Mean intersection over union, from one confusion matrix over all pixels of a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, Int, UInt8

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.masks import VOID, check_mask_values, class_mask
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.evaluation.details import Details, class_scores, worst_confusions
from big_vision_lite.evaluation.scorable import check_scorable

BACKGROUND = "background"
"""Value 0 of a mask; class c has value c + 1."""


class ConfusionMatrix:
    """Pixels by true and predicted class, over a whole dataset, as VOC and published tables count them; the mean of IoU
    over images is a different metric.

    Args:
      classes: names, without the background.
    """

    def __init__(self, classes: Sequence[str]):
        self.names = (BACKGROUND, *classes)
        self.counts = np.zeros((len(self.names),) * 2, np.int64)

    def add(self, counts: Int[np.ndarray, "k k"]) -> None:
        """Add counted pixels: rows are true classes, columns predicted ones."""
        self.counts += counts

    def add_masks(self, truth: UInt8[np.ndarray, "h w"], predicted: UInt8[np.ndarray, "h w"]) -> None:
        """Add an image's pixels. Void in ``truth`` is left out, also of unions."""
        num_classes = len(self.names)
        counted = truth != VOID
        pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
        self.add(np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes))

    def result(self) -> dict[str, float | None]:
        """Metrics from 0 to 1; None if every pixel was void.

        "IoU/NAME": intersection over union of true and predicted pixels, for each class (background included) that
        occurs in the truth or in the predictions. "mIoU": their mean; VOC's devkit averages over all 21 classes, which
        all occur in its sets. "mIoU_true": the mean over classes that occur in the truth, as some tools report.
        "pixel_accuracy": share of pixels that are classified correctly.
        """
        intersection = np.diag(self.counts).astype(np.float64)
        true, predicted = self.counts.sum(1), self.counts.sum(0)
        union = true + predicted - intersection
        iou = intersection / np.maximum(union, 1)
        return {
            "mIoU": _mean(iou[union > 0]),
            "mIoU_true": _mean(iou[true > 0]),
            "pixel_accuracy": float(intersection.sum() / self.counts.sum()) if self.counts.any() else None,
            **{f"IoU/{name}": float(value) for name, value, n in zip(self.names, iou, union, strict=True) if n},
        }


    def details(self) -> Details:
        """IoU of each class in the truth, and which classes' pixels are taken for which."""
        true, predicted = self.counts.sum(1), self.counts.sum(0)
        iou = np.diag(self.counts) / np.maximum(true + predicted - np.diag(self.counts), 1)
        pairs = np.indices(self.counts.shape).reshape(2, -1)
        return {"metric": "IoU", "classes": class_scores(self.names, iou, true),
                "confusions": worst_confusions(self.names, *pairs, self.counts.ravel(), true)}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def confusion(truth: UInt8[Array, "b h w"], predicted: Int[Array, "b h w"], num_classes: int) -> Int[Array, "b k k"]:
    """The counts of each image for a `ConfusionMatrix`, on the device. ``num_classes`` includes the background."""
    pairs = truth.astype(jnp.int32) * num_classes + predicted.astype(jnp.int32)
    pairs = jnp.where(truth != VOID, pairs, num_classes**2)

    def count(pairs: Array) -> Array:
        return jnp.zeros(num_classes**2 + 1, jnp.int32).at[pairs.ravel()].add(1)

    return jax.vmap(count)(pairs)[:, :-1].reshape(-1, num_classes, num_classes)


def mask_at_original_size(scores: Float32[np.ndarray, "gh gw k"], canvas: tuple[int, int], size: tuple[int, int],
                          original: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The best class of each pixel of an image as stored.

    Interpolates scores, not masks: bilinear, with pixel centres at halves and the outermost cells continued to the
    border (``align_corners=False``); one class at a time, which bounds memory.

    Args:
      scores: on a grid over the network's input.
      canvas: (height, width) of that input in pixels.
      size: (height, width) of the image within it, from the top left.
      original: (height, width) of the image as stored.
    """
    rows, columns = (bilinear(*sides) for sides in zip(scores.shape[:2], canvas, size, original, strict=True))
    best = np.full(original, -np.inf, np.float32)
    mask = np.zeros(original, np.uint8)
    for c in range(scores.shape[2]):
        values = rows @ scores[:, :, c] @ columns.T
        mask[values > best] = c
        np.maximum(best, values, out=best)
    return mask


def bilinear(cells: int, canvas: int, size: int, original: int) -> Float32[np.ndarray, "original cells"]:
    """Bilinear interpolation along one axis, as a matrix: from ``cells`` that span ``canvas`` pixels to ``original``
    pixels that span the first ``size`` of these."""
    position = (np.arange(original) + 0.5) * (size / original) * (cells / canvas) - 0.5
    position = np.clip(position, 0, cells - 1)
    low = np.minimum(position.astype(np.int64), max(cells - 2, 0))
    weights = np.zeros((original, cells), np.float32)
    pixels = np.arange(original)
    weights[pixels, np.minimum(low + 1, cells - 1)] = position - low
    weights[pixels, low] += 1 - (position - low)
    return weights


def check_masks(dataset: Dataset) -> None:
    """Raises: UserError as `check_scorable`, when all pixels are void; or a mask is missing or unsuitable."""
    def counts(index: int) -> bool:
        example = dataset[index]
        try:
            size = image_size(example["image"])
        except DecodeError as error:
            raise BadImageError(example["id"], str(error)) from error
        return bool((true_mask(example, len(dataset.classes), size) != VOID).any())

    check_scorable(dataset, counts, "a pixel in its mask that is not void")


def true_mask(example: Example, num_classes: int, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The class mask of an example, at its original size.

    Args:
      num_classes: without the background.
      size: (height, width) of the image in pixels.

    Raises:
      UserError: there is no mask, or it has another size, more than one number per pixel or unknown values.
    """
    if example.get("class_mask") is None:
        raise UserError(f"image {example['id']!r} has no class mask; segmentation is scored on a source with a mask "
                        "for every image, such as MaskFolder or VocTree(masks='class'), and no curation of labels but "
                        "ClassSubset")
    mask = class_mask(example, size)
    check_mask_values(example["id"], mask, num_classes)
    return mask
