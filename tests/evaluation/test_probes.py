"""Simple classifiers on features, against scikit-learn and against themselves."""

import numpy as np
import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.probes import (
    FeatureSet,
    LogisticRegression,
    Ridge,
    few_shot,
    linear_probe,
    nearest_neighbours,
    shots_of,
)

NAMES = tuple("abcde")


def blobs(count, spread=1.5, seed=0, dimensions=12):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 5)
    centres = np.random.default_rng(99).normal(size=(5, dimensions))
    values = centres[labels] + spread * rng.normal(size=(count, dimensions))
    return FeatureSet((values * 3 + 1).astype(np.float32), labels, NAMES)


@pytest.mark.parametrize("count", [8, 200])  # fewer and more rows than columns
def test_ridge_is_scikit_learns(count):
    from sklearn.linear_model import Ridge as Theirs
    from sklearn.model_selection import LeaveOneOut

    data, test = blobs(count), blobs(50, seed=1)
    y = np.eye(5)[data.labels]
    mean, scale = data.values.mean(0), data.values.std(0)
    ours = Ridge(data.values, y)
    for ridge, scores in zip((0.5, 30.0), ours.scores(test.values, (0.5, 30.0)), strict=True):
        theirs = Theirs(ridge).fit((data.values - mean) / scale, y).predict((test.values - mean) / scale)
        np.testing.assert_allclose(scores, theirs, atol=1e-4)
    if count > 8:
        z = (data.values - mean) / scale
        expected = np.zeros_like(y)
        for rest, one in LeaveOneOut().split(z):
            expected[one] = Theirs(30.0).fit(z[rest], y[rest]).predict(z[one])
        np.testing.assert_allclose(ours.left_out(30.0), expected, atol=1e-3)


def test_few_shots_are_nested_and_help():
    train, test = blobs(400), blobs(1000, seed=1)
    order = shots_of(train.labels, NAMES, seed=3)
    assert all((train.labels[rows] == c).all() for c, rows in enumerate(order))
    assert sum(len(rows) for rows in order) == 400
    accuracy = few_shot(train, test, (1, 5, 25), seeds=(0, 1, 2))
    assert few_shot(train, test, (5,), seeds=(1,))[5][0] != accuracy[1][1]
    assert np.mean(accuracy[1]) < np.mean(accuracy[5]) < np.mean(accuracy[25])
    assert few_shot(train, test, (1, 5, 25), seeds=(0, 1, 2)) == accuracy
    exactly = blobs(125)  # nothing is left to choose the regulariser on
    assert min(few_shot(exactly, test, (25,))[25]) > np.mean(accuracy[25]) - 0.1


def test_neighbours_are_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    train, test = blobs(300), blobs(2500, seed=1)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp(-d / 0.07))
    theirs.fit(train.values, train.labels)
    assert nearest_neighbours(train, test) == pytest.approx(theirs.score(test.values, test.labels), abs=1e-3)


def test_logistic_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression as Theirs

    train, test = blobs(300), blobs(500, seed=1)
    ours = LogisticRegression(train.values, train.labels, 5, 0.01)
    z = (train.values - train.values.mean(0)) / train.values.std(0)
    theirs = Theirs(C=1 / (0.01 * 300), tol=1e-8, max_iter=1000).fit(z, train.labels)
    probability = np.exp(ours(train.values))
    probability /= probability.sum(1, keepdims=True)
    np.testing.assert_allclose(probability, theirs.predict_proba(z), atol=5e-3)
    assert linear_probe(train, test) > 0.7


@pytest.mark.parametrize(("probe", "message"), [
    (lambda: few_shot(blobs(20), blobs(5), (5,)), r"class 'a' has 4 training images, fewer than 5 shots"),
    (lambda: nearest_neighbours(blobs(10), blobs(5)), r"10 training images are fewer than k=20"),
    (lambda: FeatureSet(np.full((2, 3), np.nan, np.float32), np.zeros(2, int), NAMES),
     r"of 2 images, such as number 0"),
    (lambda: FeatureSet(np.zeros((2, 3), np.float32), np.array([0, 5]), NAMES), r"labels from 0 to 5; there are 5"),
    (lambda: FeatureSet(np.zeros((2, 3), np.float32), np.zeros(3, int), NAMES), r"expected \[n, d\] and \[n\]"),
])
def test_what_is_refused(probe, message):
    with pytest.raises(UserError, match=message):
        probe()
