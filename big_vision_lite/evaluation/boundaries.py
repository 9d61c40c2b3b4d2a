"""The boundary F score of segmentation: how well predicted outlines follow the true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from big_vision_lite.data.masks import VOID

TOLERANCE = 0.0075
"""Tolerance for outlines, as a share of the image's diagonal."""


def boundary_f(truth: UInt8[np.ndarray, "h w"], predicted: UInt8[np.ndarray, "h w"],
               tolerance: float = TOLERANCE) -> dict[int, float]:
    """F of each class's outline in one image (Csurka et al., "What is a good evaluation measure for semantic
    segmentation?", BMVC 2013, section 3).

    A pixel is on the outline of its class when one of its four neighbours is of another class. Precision is the share
    of the predicted outline that is at most ``tolerance`` diagonals from the true one, recall the share of the true
    outline that is as close to the predicted one, and F their harmonic mean; 0 if either outline is missing. Void in
    the truth belongs to no class, and there is no outline between it and a class.

    Args:
      truth: mask values, 255 for void.
      predicted: mask values.

    Returns:
      F from 0 to 1 by mask value, for those (background included) with an outline in the truth or in the prediction.
    """
    reach = tolerance * float(np.hypot(*truth.shape))
    void = truth == VOID
    outlines = [_outline(np.where(void, np.uint8(VOID), mask)) for mask in (truth, predicted)]
    values = [mask[outline] for outline, mask in zip(outlines, (truth, predicted), strict=True)]
    scores = {}
    for value in np.union1d(*values).tolist():
        true, guessed = (outline & (mask == value) for outline, mask in zip(outlines, (truth, predicted), strict=True))
        precision, recall = _near(guessed, true, reach), _near(true, guessed, reach)
        scores[value] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return scores


class BoundaryMetrics:
    """The mean of `boundary_f` over a dataset.

    Args:
      names: of mask values from 0, the background.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.sums, self.images = np.zeros(len(self.names)), np.zeros(len(self.names), np.int64)

    def add(self, scores: Mapping[int, float]) -> None:
        """Add the result of `boundary_f` for an image."""
        for value, score in scores.items():
            self.sums[value] += score
            self.images[value] += 1

    def result(self) -> dict[str, float | None]:
        """"boundary_F/NAME": the mean of each class over the images in which it has an outline; "boundary_F": their
        mean, None for a dataset without outlines."""
        mean = {name: float(total / images) for name, total, images in
                zip(self.names, self.sums, self.images, strict=True) if images}
        return {"boundary_F": sum(mean.values()) / len(mean) if mean else None,
                **{f"boundary_F/{name}": value for name, value in mean.items()}}


def _outline(mask: np.ndarray) -> np.ndarray:
    """bool ``[h, w]``: pixels next to a pixel of another class, neither of them void."""
    outline = np.zeros(mask.shape, np.bool_)
    for here, beside in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        differ = (mask[here] != mask[beside]) & (mask[here] != VOID) & (mask[beside] != VOID)
        outline[here] |= differ
        outline[beside] |= differ
    return outline


def _near(points: np.ndarray, others: np.ndarray, reach: float) -> float:
    """The share of ``points`` at most ``reach`` pixels from one of ``others``; 0 if either is empty."""
    import cv2

    if not (points.any() and others.any()):
        return 0.0
    distance = cv2.distanceTransform((~others).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((distance[points] <= reach).mean())
