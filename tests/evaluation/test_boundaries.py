"""The boundary F score, against a computation by pixel and outlines with a known score."""

import numpy as np
import pytest

from big_vision_lite.data.masks import VOID
from big_vision_lite.evaluation.boundaries import BoundaryMetrics, boundary_f


def square(shift=0, side=100, value=1):
    mask = np.zeros((side, side), np.uint8)
    mask[30:70, 30 + shift : 70 + shift] = value
    return mask


def by_hand(truth, predicted, tolerance):
    """The definition, pixel by pixel."""
    height, width = truth.shape
    reach = tolerance * np.hypot(height, width)

    def outline(mask, value):
        outline = set()
        for y, x in zip(*np.nonzero((mask == value) & (truth != VOID)), strict=True):
            around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            inside = [(i, j) for i, j in around if 0 <= i < height and 0 <= j < width and truth[i, j] != VOID]
            if any(mask[place] != value for place in inside):
                outline.add((int(y), int(x)))
        return outline

    def near(points, others):
        hits = [any(np.hypot(y - i, x - j) <= reach for i, j in others) for y, x in points]
        return np.mean(hits) if hits else 0.0

    scores = {}
    for value in np.union1d(truth[truth != VOID], predicted[truth != VOID]).tolist():
        true, called = outline(truth, value), outline(predicted, value)
        if true or called:
            precision, recall = near(called, true), near(true, called)
            scores[value] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_it_follows_the_definition(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 4, VOID], (5, 6)).astype(np.uint8).repeat(4, 0).repeat(3, 1)
    predicted = np.roll(np.where(truth == VOID, 1, truth), seed + 1, 0).astype(np.uint8)
    predicted[:4, :4] = 5  # a class that is not there
    for tolerance in (0.0, 0.05, 0.2):
        scores = boundary_f(truth, predicted, tolerance)
        assert scores == pytest.approx(by_hand(truth, predicted, tolerance)) and scores[5] == 0


def test_known_outlines():
    truth = square()
    assert boundary_f(truth, truth) == {0: 1.0, 1: 1.0}
    assert boundary_f(truth, square(1)) == {0: 1.0, 1: 1.0}  # 1 pixel off, and 0.75 % of the diagonal is 1.06
    moved = boundary_f(truth, square(3))[1]  # left and right edges are too far off, the others are not
    assert 0.4 < moved < 0.6
    assert boundary_f(truth, square(3), 0.03)[1] == 1.0
    assert boundary_f(truth, np.zeros_like(truth)) == {0: 0.0, 1: 0.0}  # no outline is predicted
    assert boundary_f(np.zeros_like(truth), np.zeros_like(truth)) == {}
    assert boundary_f(np.full_like(truth, VOID), truth) == {}
    ring = truth.copy()  # VOC's masks: void around each object
    ring[28:72, 28:72] = VOID
    ring[32:68, 32:68] = 1
    assert boundary_f(ring, truth) == {}  # a prediction that changes within the void does not count


def test_means_over_images_then_classes():
    scores = BoundaryMetrics(("background", "a", "b"))
    assert scores.result() == {"boundary_F": None}
    scores.add({0: 1.0, 1: 0.5})
    scores.add({0: 0.5})
    assert scores.result() == {"boundary_F": 0.625, "boundary_F/background": 0.75, "boundary_F/a": 0.5}
