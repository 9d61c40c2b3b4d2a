"""Objects that are there and objects that were found, of many images, as flat arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    """Annotated objects, in pixels of the original images."""

    image: np.ndarray
    """int64 ``[n]``: which image, by its place among those evaluated."""
    label: np.ndarray
    """int64 ``[n]``"""
    boxes: np.ndarray
    """float64 ``[n, 4]``: (xmin, ymin, xmax, ymax), edges of pixels."""
    area: np.ndarray
    """float64 ``[n]``: as annotated; of a mask, where that is what was annotated."""
    crowd: np.ndarray
    """bool ``[n]``: many objects in one box."""
    difficult: np.ndarray
    """bool ``[n]``: need not be found."""


class Found(NamedTuple):
    """Detections, in the same coordinates."""

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    score: np.ndarray
    """float64 ``[n]``: larger is surer."""


def joined(parts: list) -> tuple:
    """The named tuples one after the other."""
    return type(parts[0])(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def xywh(boxes: np.ndarray) -> np.ndarray:
    """``[n, 4]`` edges to COCO's (left, top, width, height)."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
