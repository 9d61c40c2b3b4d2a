"""Average precision as Pascal VOC defines it, both before and since 2010; packages for COCO's do not compute it.

Everingham et al., "The Pascal visual object classes challenge", 2010, section 4.2: in order of falling score, a
detection is correct when the object of its class that it overlaps most has an IoU of at least the threshold with it and
has not been detected before. Objects marked difficult count neither as detected nor as missed.

VOC counts pixels from 1 and includes both ends, so its widths are xmax - xmin + 1. Boxes here run from edge to edge:
readers turn VOC's files into (xmin - 1, xmax), whose plain differences are the same widths.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from big_vision_lite.evaluation.boxes import Detections, GroundTruth


class VocAp(NamedTuple):
    """Per class, float64 ``[classes]``; NaN for a class without objects that must be detected."""

    area: np.ndarray
    """Area under the monotone precision-recall curve: VOC 2010 and later."""
    eleven: np.ndarray
    """Mean of the best precision at recalls of at least 0, 0.1, ..., 1: VOC 2007."""
    objects: np.ndarray
    """int64: number of objects that must be detected."""


def voc_ap(truth: GroundTruth, detections: Detections, num_classes: int, threshold: float = 0.5) -> VocAp:
    """Average precision of each class. Detections of equal score count in the order given."""
    optional = truth.difficult | truth.crowd
    objects = np.bincount(truth.label[~optional], minlength=num_classes)
    order = np.argsort(-detections.score, kind="stable")
    detections = Detections(*(column[order] for column in detections))
    best, overlap = best_overlaps(truth, detections, num_classes)
    hits = np.flatnonzero(overlap >= threshold)
    ignored, correct = np.zeros((2, len(order)), np.bool_)
    ignored[hits] = optional[best[hits]]
    hits = hits[~ignored[hits]]
    correct[hits[np.unique(best[hits], return_index=True)[1]]] = True  # the first detection of each object
    area, eleven = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    for c in np.flatnonzero(objects):
        area[c], eleven[c] = _both_averages(correct[(detections.label == c) & ~ignored].cumsum(), int(objects[c]))
    return VocAp(area, eleven, objects)


def _both_averages(correct: np.ndarray, objects: int) -> tuple[float, float]:
    """Area and eleven-point average of a class.

    Args:
      correct: int ``[detections]``, number of correct ones among the first 1, 2, ...
    """
    precision = correct / np.arange(1, len(correct) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    area = float(falling @ np.diff(correct, prepend=0)) / objects
    # In integers: 3 of 10 objects are a recall of 0.3, but floating point makes 3 * 0.1 larger.
    at = np.searchsorted(10 * correct, np.arange(11) * objects)
    return area, float(np.append(falling, 0.0)[at].mean())


def best_overlaps(truth: GroundTruth, detections: Detections, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """For each detection, the object of its image and class with the highest IoU, the first of equals.

    Returns:
      int64 ``[n]``, indices into ``truth``, and float64 ``[n]``, IoUs; 0 where there is no such object.
    """
    best, overlap = np.zeros(len(detections.score), np.int64), np.zeros(len(detections.score))
    true_group = truth.image * num_classes + truth.label
    by_group = np.argsort(true_group, kind="stable")
    group = detections.image * num_classes + detections.label
    start = np.searchsorted(true_group[by_group], group, side="left")
    count = np.searchsorted(true_group[by_group], group, side="right") - start
    with_objects = np.flatnonzero(count)
    if not len(with_objects):
        return best, overlap
    start, count = start[with_objects], count[with_objects]
    ends = count.cumsum()
    # All pairs of a detection and an object of its group, ordered by detection.
    detection = np.repeat(with_objects, count)
    candidate = by_group[np.arange(ends[-1]) - np.repeat(ends - count, count) + np.repeat(start, count)]
    pairs = iou(detections.boxes[detection], truth.boxes[candidate])
    overlap[with_objects] = np.maximum.reduceat(pairs, ends - count)
    highest = np.flatnonzero(pairs == np.repeat(overlap[with_objects], count))
    which, first = np.unique(detection[highest], return_index=True)
    best[which] = candidate[highest[first]]
    return best, overlap


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair: two float64 ``[n, 4]`` to ``[n]``."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    both = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return shared / np.where(both > 0, both, 1)
