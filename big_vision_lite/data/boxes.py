"""Boxes as data sets write them, made into those of an `Example`: clipped, without empty ones, counted."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class BoxCount:
    """What became of a source's boxes; part of what inspecting it tells."""

    boxes: int = 0
    clipped: int = 0
    """Reached out of their image; what is inside is kept."""
    dropped: int = 0
    """Without any area inside their image."""


def fitted(boxes: np.ndarray, height: int, width: int, count: BoxCount) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as fractions of the image, and which of those given they are.

    Args:
      boxes: float64 ``[n, 4]``, (ymin, xmin, ymax, xmax) in pixels, edges of pixels and not their centres.
      height, width: of the image, in pixels.
      count: is added to.

    Returns:
      float32 ``[m, 4]`` within 0 to 1, and int64 ``[m]``.
    """
    size = np.array([height, width, height, width], np.float64)
    inside = np.clip(boxes, 0, size)
    kept = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(1))
    count.boxes += len(boxes)
    count.dropped += len(boxes) - len(kept)
    count.clipped += int((inside[kept] != boxes[kept]).any(1).sum())
    return (inside[kept] / size).astype(np.float32), kept
