"""Predictions by all laws: noise, intervals, what no prediction may do, and answers in words."""

import dataclasses
import time
from pathlib import Path

import laws as benchmark
import numpy as np
import pytest
from scipy import stats

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws import answers, curves, noise, prediction
from big_vision_lite.scaling.laws.families import Asymptote, LogLinear, Power, Sigmoid, SigmoidFrom

JFT = Path(__file__).parents[1] / "goldens" / "jft_curves"
FIVE = np.geomspace(1e3, 1e5, 5)


def power(x, sigma=0.02, seed=0, seeds=None, e_inf=0.0, c=0.3):
    """Errors e_inf + 0.5 (x / 1000)^-c."""
    error = e_inf + 0.5 * (x / 1e3)**-c
    return curves.from_points(x, error * np.exp(sigma * np.random.default_rng(seed).standard_normal(x.size)), seeds)


def synthetic(*cell, seed=0):
    return benchmark.synthetic(np.random.default_rng(seed), *cell)


def jft(name):
    curve, = curves.read_curves(JFT / f"BiT-101-3_{name}_10.csv")
    return curve


# Noise.


def test_noise_of_repeated_sizes_is_theirs():
    x, seeds = np.repeat(FIVE, 6), np.tile(np.arange(6), 5)
    points = [noise.points(power(x, 0.05, seed, seeds)) for seed in range(10)]
    assert np.mean([p.noise**2 for p in points]) == pytest.approx(0.05**2, rel=0.1)
    assert all(p.correlation == 0 and p.weights.mean() == pytest.approx(1) for p in points)
    unequal = [noise.points(power(x, np.where(x < 1100, 0.2, 0.01), seed, seeds)) for seed in range(10)]
    assert np.mean([p.noise[0] / p.noise[-1] for p in unequal]) > 2


def test_variances_shrink_towards_the_pooled_one():
    x, errors = np.array([1, 1, 1, 2, 2, 3, 4, 4.0]), np.exp([0, 0.1, 0.2, -0.5, -0.7, -1, -1.5, -1.4])
    points = noise.points(curves.from_points(x, errors))
    squares, freedom = np.array([0.02, 0.02, 0, 0.005]), np.array([2, 1, 0, 1])
    pooled = (squares.sum() + 2 * 0.02**2) / (freedom.sum() + 2)
    expected = ((squares + 4 * pooled) / (freedom + 4))[[0, 0, 0, 1, 1, 2, 3, 3]]
    np.testing.assert_allclose(points.noise**2, expected)


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_noise_of_single_runs_is_that_about_a_law(sigma):
    points = [noise.points(power(np.geomspace(1e3, 1e6, 40), sigma, seed, e_inf=0.1)) for seed in range(5)]
    assert np.mean([p.noise[0] for p in points]) == pytest.approx(sigma, rel=0.15)
    assert all((p.noise == p.noise[0]).all() and p.correlation < 0.5 for p in points)
    assert np.mean([p.correlation for p in points]) < 0.2


def test_four_exact_points_are_not_taken_for_exact():
    points = noise.points(power(np.geomspace(1e3, 1e5, 4), 0.0))
    np.testing.assert_allclose(points.noise, np.sqrt(2 * 0.02**2 / (2 + 2)), rtol=1e-3)


def test_neighbours_that_err_alike_are_noticed():
    found = []
    for seed in range(6):
        steps = np.random.default_rng(seed).standard_normal(50)
        for i in range(1, 50):
            steps[i] = 0.8 * steps[i - 1] + 0.6 * steps[i]
        x = np.geomspace(1e3, 1e6, 50)
        found.append(noise.points(curves.from_points(x, power(x, 0.0).error * np.exp(0.02 * steps))).correlation)
    assert np.mean(found) == pytest.approx(0.5, abs=0.15)  # of 0.8, as a flexible law follows them in part


def test_perturbed_curves_have_the_covariance_that_points_say():
    curve = power(np.geomspace(1e3, 1e5, 8))
    points = noise.Points(curve, np.linspace(0.01, 0.04, 8), 0.6, np.linspace(0.05, 0, 8))
    logs = points.perturbed(np.random.default_rng(0), 40_000)
    lags = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    expected = np.outer(points.noise, points.noise) * 0.6**lags + np.outer(points.departure, points.departure)
    np.testing.assert_allclose(np.cov(logs.T), expected, atol=6e-5)
    np.testing.assert_allclose(logs.mean(axis=0), np.log(curve.error), atol=1e-3)


def test_smaller_sizes_may_depart_from_a_law():
    curve = power(np.geomspace(1e3, 1e6, 30), 0.001)
    points = noise.points(curve)
    np.testing.assert_allclose(points.departure, noise.DEPARTURE * 0.3 * np.log(1e6 / curve.x), rtol=0.02, atol=1e-4)
    assert points.weights[-1] > 5 * points.weights[15] > 5 * points.weights[0]


def test_long_curves_are_averaged():
    curve = power(np.geomspace(1e3, 1e6, 600), 0.05)
    points = noise.points(curve)
    assert points.curve.x.size == noise.MOST_POINTS and points.correlation == 0
    off = np.log(points.curve.error) - np.log(power(points.curve.x, 0.0).error)
    assert off.std() == pytest.approx(0.05 / np.sqrt(10), rel=0.35)
    np.testing.assert_allclose(points.noise, 0.05 / np.sqrt(10), rtol=0.3)
    assert abs(off.mean()) < 0.01


@pytest.mark.parametrize(("sizes", "seeds"), [((100, 101, 102, 1e6), 20), (range(100, 160), 2),
                                              ((*range(1000, 1070), 1e9), 1)])
def test_averages_keep_sizes_that_lie_close_together(sizes, seeds):
    x = np.repeat(np.array(sizes, float), seeds)
    curve = power(x, 0.02, seeds=np.tile(np.arange(seeds), len(sizes)))
    assert noise.points(curve).curve.sizes >= min(len(sizes), noise.MOST_POINTS)
    predicted = prediction.predict(curve)
    assert predicted.errors([1e10])[0].median < predicted.errors([100])[0].median


# Predictions.

HARD = [("M4", "independent", "30"), ("broken", "smoothed", "5 x 3"), ("M2", "correlated", "30")]


@pytest.mark.parametrize("cell", HARD, ids=" ".join)
def test_no_prediction_leaves_its_range_or_rises(cell):
    curve, _, chance = synthetic(*cell)
    predicted = prediction.predict(curve, chance)
    x = np.geomspace(curve.x.min(), prediction.HORIZON * curve.x.max(), 300)
    logs = predicted.sampled(x)
    assert len(logs) > 0.9 * prediction.SAMPLES * len(predicted.fits) and np.isfinite(logs).all()
    assert (np.diff(logs, axis=1) < 1e-4).all()
    assert chance is None or logs.max() <= np.log(chance)
    ranges = predicted.errors([curve.x.min() / 10, *x[::30]])
    for one in ranges:
        (low50, high50), (low95, high95) = one.intervals
        assert 0 < low95 <= low50 <= one.median <= high50 <= high95 and (chance is None or high95 <= chance)


def test_intervals_widen_with_the_distance():
    for curve in (power(FIVE), jft("inet")):
        predicted = prediction.predict(curve)
        ends = [one.intervals[-1] for one in predicted.errors(predicted.largest * np.array([1, 2, 8, 32, 128]))]
        widths = [np.log(high / low) for low, high in ends]
        assert (np.diff(widths) > 0.01).all()


def regression_interval(curve, x):
    line = stats.linregress(np.log(curve.x), np.log(curve.error))
    z, n = np.log(curve.x), curve.x.size
    residuals = np.log(curve.error) - line.intercept - line.slope * z
    error = np.sqrt((residuals**2).sum() / (n - 2)
                    * (1 / n + (np.log(x) - z.mean())**2 / ((z - z.mean())**2).sum()))
    return 2 * stats.t.ppf(0.975, n - 2) * error


def test_the_interval_of_a_power_law_is_that_of_linear_regression(monkeypatch):
    monkeypatch.setattr(noise, "DEPARTURE", 0.0)
    monkeypatch.setattr(prediction, "BEND", 0.0)
    inside, ratios = 0, []
    for seed in range(12):
        curve = power(np.geomspace(1e3, 1e6, 30), 0.05, seed)
        predicted = prediction.predict(curve, only=(Power(),), samples=400)
        (low, high), true = predicted.errors([1e7])[0].intervals[-1], power(np.array([1e7]), 0.0).error[0]
        inside += low <= true <= high
        ratios.append(np.log(high / low) / regression_interval(curve, 1e7))
    assert inside >= 10 and np.mean(ratios) == pytest.approx(1.0, abs=0.12)


def test_a_curve_may_leave_its_law(monkeypatch):
    """The bend adds Student's t to the fall beyond the largest size, and nothing before."""
    curve = power(np.geomspace(1e3, 1e6, 30), 0.0)
    monkeypatch.setattr(noise, "DEPARTURE", 0.0)
    monkeypatch.setattr(noise, "USUAL_NOISE", 1e-6)
    predicted = prediction.predict(curve, only=(Power(),), samples=4000)
    at_largest, beyond = (predicted.sampled(np.array([x]))[:, 0] for x in (1e6, 1e8))
    assert at_largest.std() < 1e-5
    fall = 0.3 * np.log(100)
    for share in (0.05, 0.25, 0.75, 0.95):
        expected = 1 + prediction.BEND * stats.t.ppf(share, prediction.BEND_FREEDOM)
        assert np.quantile((at_largest - beyond) / fall, share) == pytest.approx(expected, abs=0.02)
    assert predicted.bends.min() >= 0


def test_candidates_are_the_laws_that_a_curve_has_sizes_for():
    def names(sizes, chance=None):
        return [law.name.split(" (")[0] for law in prediction.candidates(power(np.geomspace(1, 9, sizes)), chance)]

    assert names(4) == ["asymptote", "shifted"] and names(4, 0.9) == ["asymptote", "shifted", "sigmoid from chance"]
    assert names(5)[2:] == ["sigmoid"] and names(6)[3:] == ["broken"] and names(9)[4:] == ["broken"]
    predicted = prediction.predict(power(FIVE), samples=20)
    assert [fit.law.name[:5] for fit in predicted.fits] == ["asymp", "shift", "sigmo"] and len(predicted.bends) == 60


def test_held_out_rows_play_no_part():
    curve = jft("inet")
    other = curves.Curve("", curve.x, np.where(curve.held_out, 0.9, curve.error), curve.seed, curve.held_out)
    x = np.array([1e6, 1e9, 1e10])
    one, two, train = (prediction.predict(c, 0.999) for c in (curve, other, curve.train))
    for predicted in (two, train):
        np.testing.assert_array_equal(one.sampled(x), predicted.sampled(x))
        np.testing.assert_array_equal(one.sizes(0.3), predicted.sizes(0.3))
        assert answers.next_size(one, 1e10) == answers.next_size(predicted, 1e10) != ""


def test_the_order_of_seeds_and_sizes_is_of_no_account():
    x, seeds = np.repeat(FIVE, 3), np.tile(np.arange(3), 5)
    curve = power(x, seeds=seeds)
    shuffled = np.random.default_rng(0).permutation(15)
    other = curves.from_points(x[shuffled], curve.error[shuffled], seeds[shuffled])
    assert prediction.predict(curve).errors([1e6]) == prediction.predict(other).errors([1e6])


def test_the_committed_curves_are_predicted_as_well_as_ever():
    rmse = [benchmark.judge(jft(name), benchmark.CHANCE[name])["rmse"] for name in ("inet", "cal")]
    assert np.mean(rmse) < 0.0265


# Sizes.


def test_the_size_for_an_error_is_the_inverse_of_the_error_at_a_size():
    predicted = prediction.predict(power(np.geomspace(1e3, 1e6, 20)))
    for error in (0.4, 0.1, 0.05):
        estimate = predicted.size_for(error)
        assert estimate.error == error and estimate.reached > 0.9
        ranges = predicted.errors([estimate.size.median])[0]
        assert ranges.median == pytest.approx(error, rel=0.01)
        low, high = estimate.size.intervals[0]
        assert low < estimate.size.median < high
        assert predicted.errors([low])[0].intervals[0][0] == pytest.approx(error, rel=0.03)
    alone = prediction.predict(power(FIVE, 0.0), only=(Power(),))
    sizes = alone.sizes(0.2)
    for size, row in zip(sizes[:10], range(10), strict=True):
        assert np.exp(alone.sampled(np.array([size]))[row, 0]) == pytest.approx(0.2, rel=1e-3)


def test_errors_below_an_asymptote_are_seldom_reached():
    predicted = prediction.predict(power(np.geomspace(1e3, 1e6, 30), 0.01, e_inf=0.2, c=0.5), only=(Asymptote(),))
    reached = [predicted.size_for(error).reached for error in (0.5, 0.22, 0.15, 0.05)]
    assert reached[0] == 1 and reached[0] >= reached[1] > 0.5 > reached[2] >= reached[3] and 0 <= reached[3] < 0.1
    sizes = predicted.sizes(0.15)
    assert np.isinf(sizes).any() and np.isinf(predicted.size_for(0.15).size.median)
    assert predicted.sizes(5.0).max() == pytest.approx(100)  # always below: the smallest of the grid


def test_chance_bounds_and_worse_is_always_reached():
    curve, _, chance = synthetic("M4", "independent", "30")
    predicted = prediction.predict(curve, chance)
    assert any(isinstance(fit.law, SigmoidFrom) for fit in predicted.fits)
    assert not any(isinstance(fit.law, Sigmoid) for fit in predicted.fits)
    assert answers.size_for(predicted, 0.995) == "error 0.995: reached with fewer than 10,000 images"


@pytest.mark.parametrize(("error", "chance", "message"), [
    ((0.5, 0.5, 0.5, 0.5), None, "all 4 errors are 0.5"),
    ((0.5, 0.6, 0.65, 0.7), None, r"errors rise with the size, from 0.5 to 0.7; if they are accuracies, give 1 minus"),
    ((0.5, 0.4, 0.3, 0.25), 0.2, "the error at the largest size, 0.25, is above that of guessing, 0.2; expected --cha"),
    ((0.5, 0.4, 0.3, 0.25), 0.01, "above that of guessing"),
])
def test_curves_without_an_answer(error, chance, message):
    with pytest.raises(UserError, match=message) as raised:
        prediction.predict(curves.from_points([10, 20, 40, 80], error, name="c"), chance)
    assert str(raised.value).startswith("curve 'c': ") and not isinstance(raised.value, prediction.TooFewSizes)


def test_noise_at_chance_is_no_mistake():
    curve = curves.from_points([10, 20, 40, 80], [0.9, 0.905, 0.91, 0.901])
    assert prediction.predict(curve, 0.9).errors([1000])[0].intervals[-1][1] <= 0.9


@pytest.mark.parametrize(("sizes", "added"), [
    ([100], "25, 50, 200, 400"), ([100, 200], "25, 50, 400"), ([100, 300, 900], "50, 1,800"),
    ([1e6] * 5, "250,000, 500,000, 2 million, 4 million"),
])
def test_too_few_sizes_name_those_to_add(sizes, added):
    errors = np.linspace(0.5, 0.3, len(sizes))
    with pytest.raises(prediction.TooFewSizes) as raised:
        prediction.predict(curves.from_points(sizes, errors))
    assert str(raised.value) == f"too few sizes to say: {len(set(sizes))} different ones; run also N = {added}"
    sizes = [*np.unique(sizes), *prediction.sizes_to_add(curves.from_points(sizes, errors))]
    assert len(set(sizes)) == prediction.FEWEST_SIZES + 1


# Answers.


def test_the_next_size_follows_from_gaussian_conditioning(monkeypatch):
    """For log errors linear in Gaussian parameters: the update of their covariance by one more observation."""
    rng, z = np.random.default_rng(0), np.log([2.0, 4.0, 16.0])
    theta = rng.multivariate_normal([0, -0.3], [[0.04, -0.01], [-0.01, 0.02]], 500)
    basis = np.stack([np.ones(3), z], axis=1)
    linear = dataclasses.replace(prediction.predict(power(FIVE), samples=20), noise=0.05)
    monkeypatch.setattr(prediction.Prediction, "sampled", lambda self, x: theta @ basis.T)
    covariance = np.cov(theta.T, bias=True)
    expected = [np.sqrt(basis[2] @ np.linalg.inv(np.linalg.inv(covariance) + np.outer(row, row) / 0.05**2) @ basis[2]
                        / (basis[2] @ covariance @ basis[2])) for row in basis[:2]]
    np.testing.assert_allclose(answers.remaining_width(linear, np.array([2.0, 4.0]), 16.0), expected, rtol=1e-9)


def test_the_next_size_is_one_that_may_be_run():
    predicted = prediction.predict(power(FIVE))
    sizes = answers.possible_sizes(predicted.curve)
    assert sizes == [1800, 5600, 18000, 56000, 200_000, 400_000]
    text = answers.next_size(predicted, 1e6)
    assert text.startswith("one more run of 400,000 images would narrow the 95 % interval at 1 million images most: ")
    before, after = (float(word) for word in (text.split()[-4], text.split()[-1]))
    low, high = predicted.errors([1e6])[0].intervals[-1]
    assert before == pytest.approx(high / low, rel=0.01) and 1 < after < before
    steep = prediction.predict(curves.from_points([100, 200, 400, 800], [0.9, 0.65, 0.4, 0.15]), only=(LogLinear(),))
    assert answers.next_size(steep, 50.0) == ""  # at twice the largest size there is no answer
    assert "no answer, as log-linear falls to an error of 0 before" in answers.value_at(steep, 1e6)


ACCURACY = answers.Terms("top1", lambda values: 1 - values, True)


def test_a_value_in_words():
    predicted = prediction.predict(power(FIVE))
    one, = predicted.errors([2e6])
    (low50, high50), (low95, high95) = one.intervals
    assert answers.value_at(predicted, 2e6) == (
        f"at 2 million images: error {one.median:.3g}, 50 % interval {low50:.3g} to {high50:.3g}, "
        f"95 % interval {low95:.3g} to {high95:.3g}")
    assert answers.value_at(predicted, 2e6, ACCURACY) == (
        f"at 2 million images: top1 {1 - one.median:.3g}, 50 % interval {1 - high50:.3g} to {1 - low50:.3g}, "
        f"95 % interval {1 - high95:.3g} to {1 - low95:.3g}")


@pytest.mark.parametrize(("sizes", "text"), [
    ([2e4] * 100, "about 20,000 images, 50 % interval 20,000 to 20,000, 95 % interval 20,000 to 20,000; reached within "
                  "1 billion images with probability above 0.99"),
    ([1e4] * 20 + [2e4] * 40 + [np.inf] * 40, "about 20,000 images, 50 % interval above 20,000, 95 % interval above "
                                              "10,000; reached within 1 billion images with probability 0.60"),
    ([2e4] * 40 + [np.inf] * 60, "reached within 1 billion images with probability 0.40; with 97.5 % probability it "
                                 "takes more than 20,000 images"),
    ([2e4] * 1 + [np.inf] * 99, "reached within 1 billion images with probability 0.01"),
    ([2e4] * 198 + [np.inf] * 2, "about 20,000 images, 50 % interval 20,000 to 20,000, 95 % interval 20,000 to 20,000; "
                                 "reached within 1 billion images with probability 0.99"),
    ([np.inf] * 100, "not reached within 1 billion images, by any of the fits"),
    ([100.0] * 100, "reached with fewer than 100 images"),
])
def test_a_size_in_words(monkeypatch, sizes, text):
    predicted = prediction.predict(power(FIVE), samples=20)
    monkeypatch.setattr(prediction.Prediction, "sizes", lambda self, error: np.array(sizes))
    assert answers.size_for(predicted, 0.2, ACCURACY) == f"top1 0.8: {text}"


@pytest.mark.slow
@pytest.mark.parametrize("cell", [("M1", "independent", "30"), ("broken", "smoothed", "5 x 3")], ids=" ".join)
def test_intervals_hold_on_synthetic_curves(cell):
    at_2x, at_10x, *widths = benchmark.cover(cell, 60)
    print(f"\n{cell}: {at_2x:.3f} and {at_10x:.3f} of 60, widths {widths}")
    assert min(at_2x, at_10x) >= 0.85


@pytest.mark.slow
def test_72_curves_of_300_points_in_time():
    made = [synthetic(("M2", "M4")[i % 2], "independent", "300", seed=i) for i in range(72)]
    start = time.perf_counter()
    for curve, _, chance in made:
        predicted = prediction.predict(curve, chance)
        assert predicted.errors([1e9])[0].median > 0 and predicted.size_for(0.1).reached >= 0
    seconds = time.perf_counter() - start
    print(f"\n72 curves: {seconds:.1f} s")
    assert seconds < 60
