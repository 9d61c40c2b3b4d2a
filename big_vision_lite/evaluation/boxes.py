"""Annotated and detected objects of many images, as flat arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class GroundTruth(NamedTuple):
    """Annotated objects, in pixels of the original images."""

    image: np.ndarray
    """int64 ``[n]``: index of the image among those evaluated."""
    label: np.ndarray
    """int64 ``[n]``"""
    boxes: np.ndarray
    """float64 ``[n, 4]``: (x1, y1, x2, y2), from edge to edge."""
    area: np.ndarray
    """float64 ``[n]``: as annotated; the mask's where masks were."""
    crowd: np.ndarray
    """bool ``[n]``: several objects in one box."""
    difficult: np.ndarray
    """bool ``[n]``: VOC's mark for objects that need not be detected."""


class Detections(NamedTuple):
    """Detections, indexed and in coordinates as `GroundTruth`."""

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    score: np.ndarray
    """float64 ``[n]``: higher is more confident."""


NO_OBJECTS = GroundTruth(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0),
                         np.zeros(0, np.bool_), np.zeros(0, np.bool_))
NO_DETECTIONS = Detections(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))


def joined(parts: list) -> tuple:
    """Named tuples of arrays, concatenated."""
    return type(parts[0])(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def xywh(boxes: np.ndarray) -> np.ndarray:
    """``[n, 4]`` (x1, y1, x2, y2) to COCO's (left, top, width, height)."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
