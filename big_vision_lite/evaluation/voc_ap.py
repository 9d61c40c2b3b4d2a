"""Average precision as Pascal VOC defines it, both ways.

Everingham et al., "The Pascal visual object classes challenge", 2010, section 4.2: in order of falling score, a
detection is right when the object of its class that it overlaps most has an IoU of at least the threshold with it and
has not been found before. Objects marked difficult count neither when they are found nor when they are not.

VOC counts pixels from 1 with both ends included, so that its widths are xmax - xmin + 1. Boxes here are edges of
pixels, which readers of such files make as (xmin - 1, xmax): plain differences are the same widths, no 1 is added.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from big_vision_lite.evaluation.boxes import Found, Truth


class VocAp(NamedTuple):
    """Of each class, float64 ``[classes]``; NaN where it has no object that must be found."""

    area: np.ndarray
    """Under the curve of precision over recall, made falling: VOC 2010 and later."""
    eleven: np.ndarray
    """Mean of the best precision at recalls of at least 0, 0.1, ..., 1: VOC 2007."""
    objects: np.ndarray
    """int64: how many must be found."""


def voc_ap(truth: Truth, found: Found, classes: int, threshold: float = 0.5) -> VocAp:
    """Average precision of each class; among equal scores, detections count in the order given."""
    optional = truth.difficult | truth.crowd
    objects = np.bincount(truth.label[~optional], minlength=classes)
    order = np.argsort(-found.score, kind="stable")
    best, overlap = best_overlaps(truth, Found(*(column[order] for column in found)), classes)
    hit = overlap >= threshold
    ignored = hit & optional[best]
    first = np.zeros(len(order), np.bool_)
    candidates = np.flatnonzero(hit & ~ignored)
    first[candidates[np.unique(best[candidates], return_index=True)[1]]] = True
    label = found.label[order]
    area, eleven = np.full(classes, np.nan), np.full(classes, np.nan)
    for c in np.flatnonzero(objects):
        right = first[(label == c) & ~ignored].cumsum()
        area[c], eleven[c] = _under(right, int(objects[c]))
    return VocAp(area, eleven, objects)


def _under(right: np.ndarray, objects: int) -> tuple[float, float]:
    """Both averages of a class.

    Args:
      right: int ``[detections]``, right ones among the first 1, 2, ...
    """
    precision = right / np.arange(1, len(right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    area = float(falling @ np.diff(right, prepend=0)) / objects
    # In whole numbers: of ten objects, three found are a recall of 0.3, which 3 * 0.1 just misses.
    at = np.searchsorted(10 * right, np.arange(11) * objects)
    return area, float(np.append(falling, 0.0)[at].mean())


def best_overlaps(truth: Truth, found: Found, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the object of its image and class with the highest IoU, the first of equals.

    Returns:
      int64 ``[found]``, an index into ``truth``, and float64 ``[found]``, the IoU: 0 where there is no such object.
    """
    best, overlap = np.zeros(len(found.score), np.int64), np.zeros(len(found.score))
    group = truth.image * classes + truth.label
    by_group = np.argsort(group, kind="stable")
    wanted = found.image * classes + found.label
    start = np.searchsorted(group[by_group], wanted, side="left")
    count = np.searchsorted(group[by_group], wanted, side="right") - start
    some = np.flatnonzero(count)
    if not len(some):
        return best, overlap
    count, ends = count[some], count[some].cumsum()
    # Every pair of a detection and an object of its group, one detection after the other.
    detection = np.repeat(some, count)
    candidate = by_group[np.arange(ends[-1]) - np.repeat(ends - count, count) + np.repeat(start[some], count)]
    pairs = iou(found.boxes[detection], truth.boxes[candidate])
    overlap[some] = np.maximum.reduceat(pairs, ends - count)
    highest = np.flatnonzero(pairs == np.repeat(overlap[some], count))
    which, first = np.unique(detection[highest], return_index=True)
    best[which] = candidate[highest[first]]
    return best, overlap


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs: two of float64 ``[n, 4]`` edges to ``[n]``."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    both = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return shared / np.where(both > 0, both, 1)
