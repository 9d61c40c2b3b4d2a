"""What an evaluation says beyond its metrics, as JSON: scores per class, the worst confusions, a curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float, Int

from big_vision_lite.evaluation.calibration import CalibrationDetails

CONFUSIONS = 20
"""Pairs of classes that are listed."""
POINTS = 101
"""Of a curve."""
MOST_CLASSES = 5_000
"""With more classes, only the worst are listed."""


class ClassScore(TypedDict):
    name: str
    score: float
    count: int
    """Images, objects or pixels of the class in the truth."""


class Confusion(TypedDict):
    true: str
    predicted: str
    share: float
    """Of the true class's images or pixels."""
    count: int


class PlottedCurve(TypedDict):
    x_label: str
    y_label: str
    x: list[float]
    y: list[float]


class Details(TypedDict):
    """What a head's `Metrics.details` gives, all of it optional."""

    metric: NotRequired[str]
    """What the scores of classes are, in words."""
    classes: NotRequired[list[ClassScore]]
    confusions: NotRequired[list[Confusion]]
    curve: NotRequired[PlottedCurve]
    calibration: NotRequired[CalibrationDetails]


def class_scores(names: Sequence[str], scores: Float[np.ndarray, " c"], counts: Int[np.ndarray, " c"]
                 ) -> list[ClassScore]:
    """The classes that occur, worst first; those without a score (NaN) are left out."""
    order = [c for c in np.argsort(scores, kind="stable").tolist() if counts[c] > 0 and not np.isnan(scores[c])]
    return [{"name": names[c], "score": round(float(scores[c]), 6), "count": int(counts[c])}
            for c in order[:MOST_CLASSES]]


def worst_confusions(names: Sequence[str], true: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"],
                     counts: Int[np.ndarray, " n"], totals: Int[np.ndarray, " c"]) -> list[Confusion]:
    """The most frequent pairs of a true and another, predicted class.

    Args:
      counts: how often each pair occurs.
      totals: how often each class is true.
    """
    wrong = np.flatnonzero((true != predicted) & (counts > 0))
    order = wrong[np.argsort(-counts[wrong], kind="stable")][:CONFUSIONS]
    return [{"true": names[true[k]], "predicted": names[predicted[k]], "count": int(counts[k]),
             "share": round(float(counts[k] / totals[true[k]]), 6)} for k in order.tolist()]


def curve(x_label: str, y_label: str, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> PlottedCurve:
    """At most `POINTS` points of a curve, its ends included."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(POINTS, len(x))).astype(int))
    return {"x_label": x_label, "y_label": y_label, "x": np.round(x[chosen], 5).tolist(),
            "y": np.round(y[chosen], 5).tolist()}


class SingleLabelAnswers:
    """The best class of each image with exactly one label, and how sure the model is of it."""

    def __init__(self) -> None:
        self._true, self._predicted, self._confidence = [], [], []

    def add(self, logits: Float[np.ndarray, "b c"], labels: Int[np.ndarray, "b k"], mask: np.ndarray) -> None:
        """As `SingleLabelMetrics.add`, which checks the arguments."""
        logits, true = logits[mask], labels[mask].max(axis=1)
        best = logits.max(axis=1, keepdims=True)
        self._true.append(true)
        self._confidence.append(1.0 / np.exp(logits - best).sum(axis=1))
        others = logits.copy()  # ties count as wrong, as in top-1
        others[np.arange(len(true)), true] = np.nextafter(logits[np.arange(len(true)), true], -np.inf)
        self._predicted.append(others.argmax(axis=1).astype(np.int32))

    def details(self, names: Sequence[str]) -> Details:
        """Accuracy per class, confusions, and accuracy if only the images that the model is surest of count."""
        true, predicted, confidence = (np.concatenate(part) if part else np.zeros(0, int) for part in
                                       (self._true, self._predicted, self._confidence))
        if not len(true):
            return {}
        totals = np.bincount(true, minlength=len(names))
        correct = np.bincount(true[true == predicted], minlength=len(names))
        pairs, counts = np.unique(true.astype(np.int64) * len(names) + predicted, return_counts=True)
        order = np.argsort(-confidence, kind="stable")
        answered = np.arange(1, len(order) + 1)
        accuracy = (true == predicted)[order].cumsum() / answered
        return {"metric": "accuracy",
                "classes": class_scores(names, correct / np.maximum(totals, 1), totals),
                "confusions": worst_confusions(names, pairs // len(names), pairs % len(names), counts, totals),
                "curve": curve("share of images, the surest first", "accuracy", answered / len(order), accuracy)}
