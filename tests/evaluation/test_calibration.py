"""Calibration, and accuracy where several answers are right, against direct computations."""

import json
import math

import numpy as np
import pytest
from scipy.special import softmax

from big_vision_lite.evaluation.answer_sets import AnswerSetMetrics
from big_vision_lite.evaluation.calibration import BINS, Calibration, best_is_right


def direct_error(confidence, right) -> float:
    """Guo et al. 2017, equation 3, word for word."""
    error = 0.0
    for m in range(BINS):
        inside = [i for i, p in enumerate(confidence) if m / BINS < p <= (m + 1) / BINS]
        if inside:
            accuracy = sum(bool(right[i]) for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return error


def test_the_error_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(500), np.arange(1, BINS + 1) / BINS, [1.0, 1.0, 1e-9]])
    right = rng.random(len(confidence)) < confidence**2
    calibration = Calibration()
    assert calibration.error() is None and calibration.details() is None
    for part in np.array_split(np.arange(len(confidence)), 7):
        calibration.add(confidence[part], right[part])
    assert calibration.error() == pytest.approx(direct_error(confidence, right), abs=1e-12)
    details = json.loads(json.dumps(calibration.details()))
    total = sum(one["images"] for one in details["bins"])
    again = sum(one["images"] * abs(one["accuracy"] - one["confidence"]) for one in details["bins"]) / total
    assert total == len(confidence) and details["ece"] == pytest.approx(again, abs=1e-5)


def test_a_calibrated_and_an_overconfident_model():
    rng = np.random.default_rng(1)
    true, sure = Calibration(), Calibration()
    confidence = rng.random(200_000)
    right = rng.random(200_000) < confidence
    true.add(confidence, right)
    sure.add(np.ones(200_000), right)
    assert true.error() < 0.01 and sure.error() == pytest.approx(0.5, abs=0.01)


def test_a_tie_is_not_right():
    scores = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    right = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    assert best_is_right(scores, right).tolist() == [False, True, True, False]


@pytest.mark.parametrize("candidates", [9, 6, 4])
def test_answer_sets_are_scored_image_by_image(candidates):
    """Sorted scores of the candidates, image by image; groups; top-5 only with five candidates."""
    rng = np.random.default_rng(candidates)
    allowed = np.zeros(9, bool)
    allowed[rng.permutation(9)[:candidates]] = True
    logits = rng.normal(size=(60, 9)).astype(np.float32)
    right, group = rng.random((60, 9)) < 0.2, rng.integers(0, 3, 60)
    right[np.arange(60), rng.choice(np.flatnonzero(allowed), 60)] = True
    metrics = AnswerSetMetrics(allowed, lambda x: softmax(x, -1).max(-1), ("a", "b", "c"))
    for part in (slice(0, 25), slice(25, 60)):
        metrics.add(logits[part], right[part], group[part])
    correct = {k: [any(right[i, c] for c in [c for c in np.argsort(-logits[i]) if allowed[c]][:k]) for i in range(60)]
               for k in (1, 5)}
    confidence = [math.exp(logits[i, allowed].max()) / sum(math.exp(x) for x in logits[i, allowed]) for i in range(60)]
    result = metrics.result()
    assert result["top1"] == np.mean(correct[1]) and result["images"] == 60
    assert ("top5" in result) == (candidates >= 5) and result.get("top5", np.mean(correct[5])) == np.mean(correct[5])
    assert result["ece"] == pytest.approx(direct_error(confidence, correct[1]), abs=1e-6)
    for one in metrics.details()["classes"]:
        members = np.flatnonzero(group == "abc".index(one["name"]))
        assert one["count"] == len(members)
        assert one["score"] == pytest.approx(np.mean([correct[1][i] for i in members]), abs=1e-6)
