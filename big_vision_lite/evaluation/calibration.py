"""Calibration: whether a classifier that is sure to p percent is right in p percent of the cases."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float

BINS = 15
"""Of equal width in confidence, as in Guo et al. 2017."""


class CalibrationBin(TypedDict):
    confidence: float
    """Mean probability that the model gave its best class."""
    accuracy: float
    """Share of the images whose best class is right."""
    images: int


class CalibrationDetails(TypedDict):
    ece: float
    bins: list[CalibrationBin]
    """In rising order, without empty ones."""


class Calibration:
    """Expected calibration error of the best class: the mean over images of |accuracy - confidence| of their bin. Bin k
    holds confidences above k / `BINS`, up to (k + 1) / `BINS`. Guo et al. 2017, "On Calibration of Modern Neural
    Networks", equation 3."""

    def __init__(self) -> None:
        self._images, self._right, self._confidence = np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS)

    def add(self, confidence: Float[np.ndarray, " b"], right: Bool[np.ndarray, " b"]) -> None:
        """The probability of each image's best class, and whether that is a class of the image."""
        confidence = np.asarray(confidence, np.float64)
        which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        self._images += np.bincount(which, minlength=BINS)
        self._right += np.bincount(which, right, BINS)
        self._confidence += np.bincount(which, confidence, BINS)

    def error(self) -> float | None:
        """In [0, 1]; None without an image."""
        images = int(self._images.sum())
        return float(np.abs(self._right - self._confidence).sum() / images) if images else None

    def details(self) -> CalibrationDetails | None:
        """For a reliability diagram; None without an image."""
        error = self.error()
        if error is None:
            return None
        return {"ece": round(error, 6), "bins": [
            {"confidence": round(float(self._confidence[k] / self._images[k]), 6), "images": int(self._images[k]),
             "accuracy": round(float(self._right[k] / self._images[k]), 6)} for k in np.flatnonzero(self._images)]}


def best_is_right(scores: Float[np.ndarray, "b c"], right: Bool[np.ndarray, "b c"]) -> Bool[np.ndarray, " b"]:
    """Whether the class with the best score is among the right ones; on a tie with a wrong one it is not."""
    return np.where(right, scores, -np.inf).max(1) > np.where(right, -np.inf, scores).max(1)
