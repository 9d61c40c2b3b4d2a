"""Accuracy where several answers count as right, or only some classes may be answered: for robustness sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from big_vision_lite.evaluation.calibration import Calibration, best_is_right
from big_vision_lite.evaluation.details import Details, class_scores

Confidence = Callable[[Float[np.ndarray, "b c"]], Float[np.ndarray, " b"]]
"""From logits to the probability of the best class."""


class AnswerSetMetrics:
    """Top-1 and top-5 accuracy among ``candidates``, and the calibration of the best one.

    An image is right in the top k when fewer than k wrong candidates score at least as high as its best right one.

    Args:
      candidates: bool ``[classes]``: those that the model may choose from.
      confidence: of the logits of the candidates.
      groups: names of the parts that get an accuracy of their own.
    """

    def __init__(self, candidates: Bool[np.ndarray, " c"], confidence: Confidence, groups: Sequence[str] = ()):
        self._candidates, self._confidence, self._groups = candidates, confidence, groups
        self._right = {k: 0 for k in (1, 5) if k <= candidates.sum()}
        self._of_group, self._right_of_group = np.zeros((2, len(groups)), np.int64)
        self._calibration, self._images = Calibration(), 0

    def add(self, logits: Float[np.ndarray, "b c"], right: Bool[np.ndarray, "b c"],
            group: Int[np.ndarray, " b"]) -> None:
        """Add images with at least one right candidate; ``group`` is an index into ``groups``."""
        logits, right = logits[:, self._candidates], right[:, self._candidates]
        best = np.where(right, logits, -np.inf).max(1, keepdims=True)
        wrong = ((logits >= best) & ~right).sum(1)
        for k in self._right:
            self._right[k] += int((wrong < k).sum())
        self._images += len(logits)
        self._calibration.add(self._confidence(logits), best_is_right(logits, right))
        if self._groups:
            self._of_group += np.bincount(group, minlength=len(self._groups))
            self._right_of_group += np.bincount(group[wrong == 0], minlength=len(self._groups))

    def result(self) -> dict[str, float | None]:
        """"top1", "top5" (from five candidates on) and "ece", None without an image; and "images"."""
        share = {f"top{k}": right / self._images if self._images else None for k, right in self._right.items()}
        return {**share, "ece": self._calibration.error(), "images": self._images}

    def details(self) -> Details:
        details: Details = {}
        if self._groups:
            scores = self._right_of_group / np.maximum(self._of_group, 1)
            details |= {"metric": "accuracy", "classes": class_scores(self._groups, scores, self._of_group)}
        if calibration := self._calibration.details():
            details["calibration"] = calibration
        return details
