"""Simple classifiers on features, against scikit-learn and against themselves."""

import numpy as np
import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.evaluation import probes
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
RIDGES = [2.0**-10 * 4**k for k in range(16)]
PENALTIES = [0.000001, 0.0001, 0.01, 1.0]


def blobs(count, spread=1.5, seed=0, dimensions=12):
    """The last feature says nothing: it is constant."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 5)
    centres = np.random.default_rng(99).normal(size=(5, dimensions))
    values = centres[labels] + spread * rng.normal(size=(count, dimensions))
    values[:, -1] = 2.0
    return FeatureSet((values * 3 + 1).astype(np.float32), labels, NAMES)


def standardised(by, *sets):
    """The values of each set, by mean and deviation of ``by``."""
    scale = by.std(0)
    return [(values - by.mean(0)) / np.where(scale > 0, scale, 1) for values in sets]


def best(accuracies):
    """The index of the last of the best: on average the strongest regulariser of those that are as good."""
    return len(accuracies) - 1 - int(np.argmax(accuracies[::-1]))


@pytest.mark.parametrize("count", [8, 200])  # fewer and more rows than columns
def test_ridge_is_scikit_learns(count):
    from sklearn.linear_model import Ridge as Theirs
    from sklearn.model_selection import LeaveOneOut

    data, test = blobs(count), blobs(50, seed=1)
    y = np.eye(5)[data.labels]
    z, z_test = standardised(data.values, data.values, test.values)
    ours = Ridge(data.values, y)
    for ridge, scores in zip((0.5, 30.0), ours.scores(test.values, (0.5, 30.0)), strict=True):
        np.testing.assert_allclose(scores, Theirs(ridge).fit(z, y).predict(z_test), atol=1e-4)
    if count > 8:
        expected = np.zeros_like(y)
        for rest, one in LeaveOneOut().split(z):
            expected[one] = Theirs(30.0).fit(z[rest], y[rest]).predict(z[one])
        np.testing.assert_allclose(ours.left_out(30.0), expected, atol=1e-3)


def test_few_shots_are_nested_and_help():
    train, test = blobs(400), blobs(1000, seed=1)
    order = shots_of(train.labels, NAMES, seed=3)
    assert all((train.labels[rows] == c).all() for c, rows in enumerate(order))
    assert sum(len(rows) for rows in order) == 400
    assert list(few_shot(train, test, seeds=(0,))) == [1, 5, 10, 25]
    accuracy = few_shot(train, test, (1, 5, 25), seeds=(0, 1, 2))
    assert few_shot(train, test, (5,), seeds=(1,))[5][0] != accuracy[1][1]
    assert np.mean(accuracy[1]) < np.mean(accuracy[5]) < np.mean(accuracy[25])
    assert few_shot(train, test, (1, 5, 25), seeds=(0, 1, 2)) == accuracy
    exactly = blobs(125)  # nothing is left to choose the regulariser on
    assert min(few_shot(exactly, test, (25,))[25]) > np.mean(accuracy[25]) - 0.1


@pytest.mark.parametrize(("count", "shots", "held_out"), [
    (125, 3, 2), (125, 10, 10), (17, 3, 10)])  # of the last, not all classes have further images
def test_few_shot_follows_its_definition(count, shots, held_out):
    from sklearn.linear_model import Ridge as Theirs
    from sklearn.model_selection import LeaveOneOut

    train, test, expected = blobs(count, spread=2.5), blobs(200, seed=1), []
    for seed in (0, 1, 2):
        order = np.random.default_rng(seed).permutation(count)
        rows = [[i for i in order if train.labels[i] == c] for c in range(5)]
        few = np.concatenate([of_class[:shots] for of_class in rows])
        more = [of_class[shots : shots + held_out] for of_class in rows]
        validation = np.concatenate(more).astype(int) if all(more) else None
        z, z_more, z_test = standardised(train.values[few], train.values[few], train.values[validation], test.values)
        y, accuracies = np.eye(5)[train.labels[few]], []
        for ridge in RIDGES:
            if validation is None:
                right, scores = train.labels[few], np.concatenate([
                    Theirs(ridge).fit(z[rest], y[rest]).predict(z[one]) for rest, one in LeaveOneOut().split(z)])
            else:
                right, scores = train.labels[validation], Theirs(ridge).fit(z, y).predict(z_more)
            accuracies.append(np.mean(scores.argmax(1) == right))
        scores = Theirs(RIDGES[best(accuracies)]).fit(z, y).predict(z_test)
        expected.append(np.mean(scores.argmax(1) == test.labels))
    assert few_shot(train, test, (shots,), held_out=held_out)[shots] == pytest.approx(expected)
    assert held_out != 10 or few_shot(train, test, (shots,)) == few_shot(train, test, (shots,), (0, 1, 2), 10)


def test_neighbours_are_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    train, test = blobs(300), blobs(2500, seed=1)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp(-d / 0.07))
    theirs.fit(train.values, train.labels)
    assert nearest_neighbours(train, test) == pytest.approx(theirs.score(test.values, test.labels))
    assert nearest_neighbours(blobs(20), test) > 0.2  # exactly as many as neighbours


def test_logistic_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression as Theirs

    train, test = blobs(300), blobs(500, seed=1)
    ours = LogisticRegression(train.values, train.labels, 5, 0.01)
    z, z_test = standardised(train.values, train.values, test.values)
    theirs = Theirs(C=1 / (0.01 * 300), tol=1e-8, max_iter=1000).fit(z, train.labels)
    for values, expected in ((train.values, z), (test.values, z_test)):
        probability = np.exp(ours(values))
        probability /= probability.sum(1, keepdims=True)
        np.testing.assert_allclose(probability, theirs.predict_proba(expected), atol=5e-3)


@pytest.mark.parametrize("count", [8, 60])
def test_the_linear_probe_chooses_its_penalty_on_a_tenth(count):
    from sklearn.linear_model import LogisticRegression as Theirs

    train, test = blobs(count, 3.5, dimensions=30), blobs(500, 1.75, 50, 30)

    def accuracy(rows, penalty, values, labels):
        z, z_scored = standardised(train.values[rows], train.values[rows], values)
        fit = Theirs(C=1 / (penalty * len(rows)), tol=1e-6, max_iter=2000).fit(z, train.labels[rows])
        return np.mean(fit.predict(z_scored) == labels)

    assert list(probes.PENALTIES) == PENALTIES
    order = np.random.default_rng(0).permutation(count)
    held_out, rest = np.split(order, [max(1, count // 10)])
    chosen = best([accuracy(rest, p, train.values[held_out], train.labels[held_out]) for p in PENALTIES])
    expected = accuracy(order, PENALTIES[chosen], test.values, test.labels)
    assert linear_probe(train, test) == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize(("probe", "message"), [
    (lambda: few_shot(blobs(20), blobs(5), (5,)), r"class 'a' has 4 training images, fewer than 5 shots"),
    (lambda: nearest_neighbours(blobs(10), blobs(5)), r"10 training images are fewer than k=20"),
    (lambda: FeatureSet(np.full((2, 3), np.nan, np.float32), np.zeros(2, int), NAMES),
     r"of 2 images, such as number 0"),
    (lambda: FeatureSet(np.float32([[0, 1], [0, np.inf], [1, 1]]), np.zeros(3, int), NAMES),
     r"of 1 images, such as number 1"),
    (lambda: FeatureSet(np.zeros((2, 3), np.float32), np.array([-1, 4]), NAMES), r"labels from -1 to 4; there are 5"),
    (lambda: FeatureSet(np.zeros((2, 3), np.float32), np.array([0, 5]), NAMES), r"labels from 0 to 5; there are 5"),
    (lambda: FeatureSet(np.zeros((2, 3), np.float32), np.zeros(3, int), NAMES), r"expected \[n, d\] and \[n\]"),
])
def test_what_is_refused(probe, message):
    with pytest.raises(UserError, match=message):
        probe()
