"""The boundary F score of segmentation: how well predicted outlines follow the true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from big_vision_lite.data.joint_transforms import VOID

TOLERANCE = 0.0075
"""Share of an image's diagonal that an outline may be off."""


def boundary_f(truth: UInt8[np.ndarray, "h w"], predicted: UInt8[np.ndarray, "h w"],
               tolerance: float = TOLERANCE) -> dict[int, float]:
    """F of each class's outline in one image (Csurka et al., "What is a good evaluation measure for semantic
    segmentation?", BMVC 2013, section 3).

    A pixel is on the outline of its class when one of its four neighbours is of another. Precision is the share of the
    predicted outline from which the true one is at most ``tolerance`` diagonals away, recall the share of the true one
    from which the predicted is, and F their harmonic mean; 0 where one of the two is missing. What is void in the truth
    is of no class, and no outline lies between it and a class.

    Args:
      truth: values of classes, 255 for void.
      predicted: values of classes.

    Returns:
      F from 0 to 1 of each value that has an outline in the truth or in the prediction; the background is one.
    """
    reach = tolerance * float(np.hypot(*truth.shape))
    void = truth == VOID
    outlines = [_outline(np.where(void, np.uint8(VOID), mask)) for mask in (truth, predicted)]
    values = [mask[outline] for outline, mask in zip(outlines, (truth, predicted), strict=True)]
    found = {}
    for value in np.union1d(*values).tolist():
        true, called = (outline & (mask == value) for outline, mask in zip(outlines, (truth, predicted), strict=True))
        precision, recall = _near(called, true, reach), _near(true, called, reach)
        found[value] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return found


class BoundaryScores:
    """The mean of `boundary_f` over a set.

    Args:
      names: of mask values, from 0, the background.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.sums, self.images = np.zeros(len(self.names)), np.zeros(len(self.names), np.int64)

    def add(self, found: Mapping[int, float]) -> None:
        """Add what `boundary_f` says of an image."""
        for value, score in found.items():
            self.sums[value] += score
            self.images[value] += 1

    def result(self) -> dict[str, float]:
        """"boundary_F/NAME": of each class, the mean over the images in which it has an outline; "boundary_F": their
        mean, 0 for a set without outlines."""
        mean = {name: float(total / images) for name, total, images in
                zip(self.names, self.sums, self.images, strict=True) if images}
        return {"boundary_F": sum(mean.values()) / max(len(mean), 1),
                **{f"boundary_F/{name}": value for name, value in mean.items()}}


def _outline(mask: np.ndarray) -> np.ndarray:
    """bool ``[h, w]``: pixels, void ones left out, beside which another class begins."""
    found = np.zeros(mask.shape, np.bool_)
    for one, other in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        differ = (mask[one] != mask[other]) & (mask[one] != VOID) & (mask[other] != VOID)
        found[one] |= differ
        found[other] |= differ
    return found


def _near(points: np.ndarray, others: np.ndarray, reach: float) -> float:
    """The share of ``points`` that are at most ``reach`` pixels from one of ``others``; 0 where either is empty."""
    import cv2

    if not (points.any() and others.any()):
        return 0.0
    distance = cv2.distanceTransform((~others).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((distance[points] <= reach).mean())
