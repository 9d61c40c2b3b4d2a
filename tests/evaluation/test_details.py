"""What evaluations say beyond their metrics, against scikit-learn and by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve

from big_vision_lite.evaluation.classification import MultiLabelMetrics, SingleLabelMetrics
from big_vision_lite.evaluation.details import SingleLabelAnswers, class_scores, curve
from big_vision_lite.evaluation.segmentation import ConfusionMatrix

NAMES = ("ant", "bee", "cow", "dog", "elk")


def test_single_label_details_are_scikit_learns():
    rng = np.random.default_rng(0)
    true, logits = rng.integers(0, 4, 300), rng.normal(size=(300, 5)).astype(np.float32)
    logits[np.arange(300), true] += rng.normal(1, 1, 300).astype(np.float32)
    answers, metrics, mask = SingleLabelAnswers(), SingleLabelMetrics(5, 300), np.ones(100, bool)
    for part in range(3):
        rows = slice(100 * part, 100 * part + 100)
        mask[:10] = part != 2  # padding
        for accumulator in (answers, metrics):
            accumulator.add(logits[rows], true[rows, None].astype(np.int32), mask)
    kept = np.r_[0:200, 210:300]
    details, expected = answers.details(NAMES), confusion_matrix(true[kept], logits[kept].argmax(1), labels=range(5))
    by_name = {one["name"]: one for one in details["classes"]}
    assert set(by_name) == set(NAMES[:4])  # elk is never true
    for c, name in enumerate(NAMES[:4]):
        assert by_name[name]["count"] == expected[c].sum()
        assert by_name[name]["score"] == pytest.approx(expected[c, c] / expected[c].sum(), abs=1e-6)
    assert [one["score"] for one in details["classes"]] == sorted(one["score"] for one in details["classes"])
    wrong = expected - np.diag(np.diag(expected))
    assert [one["count"] for one in details["confusions"]] == sorted(wrong[wrong > 0].tolist(), reverse=True)[:20]
    for one in details["confusions"]:
        assert one["count"] == expected[NAMES.index(one["true"]), NAMES.index(one["predicted"])]
    assert details["curve"]["y"][-1] == pytest.approx(metrics.result()["top1"], abs=1e-5)
    json.dumps(details)


def test_a_tie_is_no_right_answer():
    answers = SingleLabelAnswers()
    answers.add(np.zeros((3, 2), np.float32), np.array([[0], [0], [1]], np.int32), np.ones(3, bool))
    assert [one["score"] for one in answers.details(NAMES[:2])["classes"]] == [0, 0]
    assert SingleLabelAnswers().details(NAMES) == {}


def test_multi_label_details_are_scikit_learns():
    rng = np.random.default_rng(1)
    truth = rng.random((200, 5)) < [0.1, 0.3, 0.5, 0.2, 0.0]
    logits = (3 * truth + rng.normal(size=(200, 5)) * 2).astype(np.float32)
    labels = np.full((200, 5), -1, np.int32)
    for row, present in enumerate(truth):
        labels[row, :present.sum()] = np.flatnonzero(present)
    metrics = MultiLabelMetrics(5, 200)
    metrics.add(logits, labels, np.ones(200, bool))
    details = metrics.details(NAMES)
    for one in details["classes"]:
        c = NAMES.index(one["name"])
        assert one["score"] == pytest.approx(average_precision_score(truth[:, c], logits[:, c]), abs=1e-5)
        assert one["count"] == truth[:, c].sum()
    precision, recall, _ = precision_recall_curve(truth.ravel(), logits.ravel())
    x, y = details["curve"]["x"], details["curve"]["y"]
    for at, value in zip(x, y, strict=True):  # the scores are binned: as good as some point close by
        assert np.abs(precision[np.abs(recall - at) < 0.01] - value).min() < 0.02
    assert x[-1] == 1.0 and x == sorted(x)
    assert MultiLabelMetrics(5, 2).details(NAMES) == {}


def test_pixels_of_classes():
    matrix = ConfusionMatrix(("cat", "dog"))
    matrix.add(np.array([[50, 5, 0], [10, 20, 0], [0, 0, 0]]))
    details = matrix.details()
    assert [(one["name"], one["count"]) for one in details["classes"]] == [("cat", 30), ("background", 55)]
    assert details["classes"][0]["score"] == pytest.approx(20 / 35, abs=1e-6)
    assert details["confusions"][0] == {"true": "cat", "predicted": "background", "share": 0.333333, "count": 10}


def test_lists_are_limited():
    many = curve("x", "y", np.linspace(0, 1, 5000), np.ones(5000))
    assert len(many["x"]) == 101 and many["x"][0] == 0 and many["x"][-1] == 1
    names = tuple(map(str, range(6000)))
    assert len(class_scores(names, np.ones(6000), np.ones(6000, int))) == 5000
