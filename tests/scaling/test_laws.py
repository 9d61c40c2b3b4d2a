"""Laws of error against data: derivatives, formulas and fits; their comparison; curves in files; the downstream law."""

import numpy as np
import pytest
from scipy import optimize

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws import comparison, curves, downstream, fitting
from big_vision_lite.scaling.laws.broken import Broken
from big_vision_lite.scaling.laws.families import (
    LAWS,
    Asymptote,
    Downstream,
    LogLinear,
    Power,
    Shifted,
    Sigmoid,
    SigmoidFrom,
    laws,
)

# Laws with parameters on z = ln(x / x0) for which the curve bends.
TRUE = {
    LogLinear(): (0.5, 0.04), Power(): (-1.0, 0.3), Asymptote(): (-1.2, 0.4, 0.1), Shifted(): (-1.0, 0.4, -1.0),
    Sigmoid(): (0.3, 0.8, 0.15, 0.5, 0.95), SigmoidFrom(0.95): (0.3, 0.8, 0.15, 0.5), Downstream(): (-1.2, 1.4, 0.1),
    Broken(1): (-1.0, 0.1, 0.05, 0.8, -0.5, np.log(0.4)),
    Broken(2): (-1.0, 0.1, 0.02, 0.8, -1.5, np.log(0.3), 0.2, 1.2, np.log(0.4)),
}
X = np.geomspace(1e5, 1e8, 40)
LOG_X0 = np.log(X).mean()
each_law = pytest.mark.parametrize("law", TRUE, ids=lambda law: law.name)


def points(law, noise=0.0, seed=0, x=X, theta=None):
    error = law.predict(np.array([theta or TRUE[law]]), np.log(x) - np.log(x).mean())[0][0]
    return curves.from_points(x, error * np.exp(noise * np.random.default_rng(seed).standard_normal(x.size)))


@each_law
def test_derivatives(law):
    theta, z = np.array([TRUE[law]]), np.linspace(-3, 3, 7)
    _, slopes = law.predict(theta, z)
    for i in range(theta.shape[1]):
        nudge = np.zeros_like(theta)
        nudge[0, i] = 1e-6
        numeric = (law.predict(theta + nudge, z)[0] - law.predict(theta - nudge, z)[0]) / 2e-6
        np.testing.assert_allclose(slopes[0, :, i], numeric[0], atol=1e-7)


FORMULAS = {
    "log-linear": lambda e, x, p: (e, p["a"] - p["b"] * np.log10(x)),
    "power": lambda e, x, p: (e, p["beta"] * x**p["c"]),
    "asymptote": lambda e, x, p: (e, p["e_inf"] + p["beta"] * x**p["c"]),
    "shifted": lambda e, x, p: (e, p["beta"] * (1 / x + p["gamma"])**-p["c"]),
    "sigmoid": lambda e, x, p: ((e - p["e_inf"]) / (p.get("e0", 0.95) - e)**p["alpha"], p["beta"] * x**p["c"]),
    "downstream": lambda e, x, p: (e, p["e_IR"] + p["k"] * x**p["alpha"]),
    "broken": lambda e, x, p: (e, caballero(x, p["e_inf"], p["beta"], -p["c"], [
        (-p[f"c{i}"], p[f"d{i}"], p[f"f{i}"]) for i in (1, 2) if f"c{i}" in p])),
}


def caballero(x, a, b, c0, breaks):
    """Equation 1 of Caballero et al. (2022), whose exponents are positive where errors fall."""
    y = b * x**-c0
    for c, d, f in breaks:
        y = y * (1 + (x / d)**(1 / f))**(-c * f)
    return a + y


@each_law
def test_natural_parameters_are_those_of_the_formula(law):
    theta, x = np.array([TRUE[law]]), np.geomspace(20, 2000, 5)
    log_x0 = 5.3  # neither 0 nor 1, where mistakes vanish
    error = law.predict(theta, np.log(x) - log_x0)[0][0]
    natural = {name: value[0] for name, value in law.natural(theta, log_x0).items()}
    assert tuple(natural) == law.parameters
    left, right = FORMULAS[law.name.split()[0]](error, x, natural)
    np.testing.assert_allclose(left, right, rtol=1e-9)


@each_law
def test_a_fit_finds_the_parameters(law):
    fitted = fitting.fit(law, points(law))
    assert fitted.rmse < 1e-4 and not fitted.at_bounds
    for name, value in law.natural(np.array([TRUE[law]]), LOG_X0).items():
        assert fitted.natural()[name][0] == pytest.approx(value[0], rel=0.02, abs=1e-9), name


@pytest.mark.parametrize(("law", "theta", "which"), [
    (Power(), (-1.0, 9.7), "c"),
    (Sigmoid(), (0.3, 2.0, 0.15, 9.7, 0.95), "alpha"),
    (Sigmoid(), (-1.5, 0.3, 0.1, 0.05, 0.8), "alpha"),
    (SigmoidFrom(0.95), (0.3, 2.0, 0.15, 9.7), "alpha"),
    (Shifted(), (-1.0, 0.4, -17.5), "gamma"),
    (Shifted(), (-1.0, 0.4, 3.0), "gamma"),
    (Broken(1), (-1.0, 0.2, 0.0, 4.8, 1.0, np.log(0.5)), "c1"),
    (Broken(1), (-1.0, 0.1, 0.0, 0.8, 0.0, np.log(0.06)), "f1"),
    (Broken(1), (-1.0, 0.1, 0.0, 0.8, 3.0, np.log(0.1)), "d1"),
    (Broken(1), (-1.0, 1.5, 0.0, 0.1, -3.3, np.log(0.1)), "d1"),
], ids=str)
def test_parameters_near_their_bounds_are_found(law, theta, which):
    fitted = fitting.fit(law, points(law, theta=theta))
    expected = law.natural(np.array([theta]), LOG_X0)[which][0]
    assert fitted.rmse < 1e-4 and fitted.natural()[which][0] == pytest.approx(expected, rel=0.1)


def test_parameters_at_a_bound_are_named():
    steep = points(Power(), theta=(-1.0, 12.0))
    assert fitting.fit(Power(), steep).at_bounds == ("c",)
    assert fitting.fit(Sigmoid(), points(Sigmoid(), theta=(0.3, 2.0, 0.15, 14.0, 0.95))).at_bounds == ("alpha",)
    assert fitting.fit(Asymptote(), points(Power())).at_bounds == ()  # an asymptote of 0 is no limit


def test_a_line_may_be_steep_and_fall_below_0():
    x = np.geomspace(1, 1.2, 9)
    steep = fitting.fit(LogLinear(), curves.from_points(x, 100 - 500 * np.log(x)))
    assert steep.natural()["b"][0] == pytest.approx(500 * np.log(10), rel=1e-3) and not steep.at_bounds
    convex = points(Power(), theta=(-1.0, 1.5))
    fitted = fitting.fit(LogLinear(), convex)
    assert fitted.predict(X[-1:])[0, 0] < 0.01 and np.isfinite([*fitted.theta, fitted.rmse]).all()


def test_no_error_rate_exceeds_1_but_a_loss_may():
    z = np.linspace(-2, 2, 5)
    for scale, highest in ((1.0, 1.0), (3.0, 27.0)):
        assert Sigmoid().bounds(z, scale * np.linspace(0.9, 0.1, 5))[1][4] == pytest.approx(highest)


def test_noise_beyond_the_plateaus_does_not_move_them():
    law = Sigmoid()
    curve = points(law, noise=0.02, x=np.geomspace(1e3, 1e11, 300))
    assert curve.error.max() > 0.97 and curve.error.min() < 0.15  # beyond e0 and e_inf
    parameters = {name: value[0] for name, value in fitting.fit(law, curve).natural().items()}
    assert parameters["e0"] == pytest.approx(0.95, abs=0.01) and parameters["e_inf"] == pytest.approx(0.15, abs=0.01)
    assert parameters["c"] == pytest.approx(-0.8, abs=0.08)


def test_fit_is_the_robust_optimum_of_scipy():
    curve = points(Asymptote(), noise=0.05)
    curve.error[7] *= 2
    fitted = fitting.fit(Asymptote(), curve)
    z = np.log(curve.x) - LOG_X0

    def residuals(theta):
        return np.log(Asymptote().predict(theta[None], z)[0][0]) - np.log(curve.error)

    optimum = optimize.least_squares(residuals, [-1, 0.3, 0.05], loss="soft_l1", f_scale=fitted.delta, xtol=1e-12,
                                     bounds=([-9, 0, 0], [9, 9, curve.error.min()]))
    np.testing.assert_allclose(fitted.theta, optimum.x, rtol=1e-3)
    assert fitted.theta[1] == pytest.approx(0.4, abs=0.1)  # the outlier pulls least squares further away


def soft_l1(law, theta, curve, delta, weights=1.0):
    residuals = np.log(law.predict(np.atleast_2d(theta), np.log(curve.x) - LOG_X0)[0][0]) - np.log(curve.error)
    return float((weights * (np.sqrt(1 + (residuals / delta)**2) - 1)).sum())


@pytest.mark.parametrize("noise", [0.01, 0.1])
@each_law
def test_no_fit_is_worse_than_scipys_from_the_truth(law, noise):
    curve = points(law, noise)
    fitted = fitting.fit(law, curve)

    def residuals(theta):
        return np.log(np.maximum(law.predict(theta[None], np.log(curve.x) - LOG_X0)[0][0], fitted.floor)) - np.log(
            curve.error)

    start = np.clip(TRUE[law], fitted.bounds[0] + 1e-9, fitted.bounds[1] - 1e-9)
    optimum = optimize.least_squares(residuals, start, bounds=fitted.bounds, loss="soft_l1", f_scale=fitted.delta)
    found, best = (soft_l1(law, theta, curve, fitted.delta) for theta in (fitted.theta, optimum.x))
    assert found < 1.005 * best


def test_weights_and_refits():
    """A weighted fit, and fits to other errors at the same sizes, are the optimum of their weighted loss."""
    law, curve = Power(), points(Power(), 0.05)
    weights = np.linspace(0.1, 1.9, X.size)
    fitted = fitting.fit(law, curve, weights)
    optimum = optimize.minimize(lambda theta: soft_l1(law, theta, curve, fitted.delta, weights), [-1, 0.3], tol=1e-10)
    np.testing.assert_allclose(fitted.theta, optimum.x, rtol=1e-3)
    assert abs(fitted.theta[1] - fitting.fit(law, curve).theta[1]) > 1e-3
    copies = np.log([points(law, 0.05, seed).error for seed in (1, 2)])
    refitted = fitting.refit(fitted, curve, copies, weights, noise=0.06)
    delta = max(0.18, fitted.delta)
    for theta, copy in zip(refitted, copies, strict=True):
        other = curves.from_points(X, np.exp(copy))
        optimum = optimize.minimize(lambda theta, other=other: soft_l1(law, theta, other, delta, weights), [-1, 0.3],
                                    tol=1e-10)
        np.testing.assert_allclose(theta, optimum.x, rtol=1e-3)


def test_too_few_sizes_for_a_law():
    with pytest.raises(UserError, match="broken has 6 parameters, the curve 5 different sizes"):
        fitting.fit(Broken(1), curves.from_points(np.repeat(X[:5], 3), np.linspace(0.9, 0.1, 15)))


def test_laws_from_chance():
    assert laws() == LAWS and [law.name for law in laws(0.9) if law not in LAWS] == ["sigmoid from chance (M4)"]
    fitted = fitting.fit(SigmoidFrom(0.95), points(Sigmoid()))
    assert fitted.predict(np.array([1.0]))[0, 0] == pytest.approx(0.95, abs=1e-3)


def test_laws_are_scored_at_sizes_above_half_the_largest():
    """Of sizes that double, the half itself is among those that are fitted."""
    scores = comparison.compare(curves.from_points([100, 200, 400, 800], [0.5, 0.4, 0.33, 0.28]))
    inner = {score.law.name.split()[0]: score.inner for score in scores}
    fitted = fitting.fit(Power(), curves.from_points([100, 200, 400], [0.5, 0.4, 0.33]))
    assert inner["power"] == pytest.approx(abs(np.log(fitted.predict(np.array([800.0]))[0, 0] / 0.28)))
    assert inner["asymptote"] is not None and inner["sigmoid"] is None
    assert {score.law.name: score.note for score in scores}["sigmoid (M4)"] == "needs 5 sizes"
    assert all(score.held_out is None for score in scores) and "extrapolate" not in comparison.table(scores)[0]


def test_held_out_points_are_scored_by_fits_to_the_others():
    error = np.array([0.5, 0.4, 0.33, 0.28, 0.1, 0.1])
    x = np.array([100, 200, 400, 800, 1600, 1e9])
    held_out = np.array([False] * 4 + [True] * 2)
    scores = comparison.compare(curves.from_points(x, error, held_out=held_out))
    fitted = fitting.fit(Power(), curves.from_points(x[:4], error[:4]))
    power = scores[1]
    np.testing.assert_array_equal(power.fit.theta, fitted.theta)
    logs = np.log(fitted.predict(x[4:])[0] / 0.1)
    assert power.held_out == pytest.approx(np.sqrt((logs**2).mean()))
    assert scores[0].held_out == np.inf  # the straight line has fallen below 0
    header, line, *_ = comparison.table(scores)
    assert header[4] == "extrapolate" and line[:2] == ["log-linear", LogLinear.formula] and line[4] == "inf"


def test_a_parameter_at_its_bound_is_noted():
    scores = comparison.compare(points(Power(), theta=(-1.0, 12.0)), (Power(), Asymptote()))
    assert [score.note for score in scores] == ["at a bound: c", "at a bound: c"]
    assert [row[-1] for row in comparison.table(scores)] == ["", *(score.note for score in scores)]
    assert comparison.compare(points(Power()), (Power(),))[0].note == ""


def test_points_are_sorted_and_may_be_taken():
    curve = curves.from_points([4, 2, 4, 2], [0.1, 0.4, 0.2, 0.3], ["b", "b", "a", "a"])
    assert curve.error.tolist() == [0.3, 0.4, 0.2, 0.1] and curve.seed.tolist() == [0, 1, 0, 1] and curve.sizes == 2
    assert curve.take(curve.x > 2).error.tolist() == [0.2, 0.1]
    with pytest.raises(UserError, match=r"curve 'c': size -1 in point 2; expected numbers above 0, from 1e-30"):
        curves.from_points([1, -1], [1, 1], name="c")
    with pytest.raises(UserError, match="error 0 in point 2"):
        curves.from_points([1, 2], [1, 0])


def test_rows_become_curves(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("curve,images,error,seed,split\na,10,0.5,1,train\nb,5,0.6,0,train\na,20,0.4,1,extrapolate\n"
                    "a,10,0.45,0,train\n")
    a, b = curves.read_curves(path)
    assert (a.name, b.name, b.x.tolist()) == ("a", "b", [5])
    assert a.error.tolist() == [0.45, 0.5, 0.4] and a.held_out.tolist() == [False, False, True]
    assert a.train.sizes == 1 and a.train.error.tolist() == [0.45, 0.5]


@pytest.mark.parametrize(("count", "text"), [
    (0.1234, "0.123"), (12.34, "12.3"), (99.96, "100"), (100, "100"), (12_345, "12,300"), (999_400, "999,000"),
    (1e6, "1 million"), (4.5e6, "4.5 million"), (999.4e6, "999 million"), (999.6e6, "1 billion"),
    (2.345e9, "2.35 billion"), (999.6e9, "1.00e+12"), (3.14e15, "3.14e+15"), (np.inf, "no bound"),
])
def test_counts_as_words(count, text):
    assert curves.format_count(count) == text


def test_downstream_law_is_fitted_to_the_hull(tmp_path):
    rng = np.random.default_rng(0)
    upstream = np.geomspace(0.2, 0.8, 25)
    error = 0.05 + 0.8 * upstream**1.5
    worse = rng.uniform(0.25, 0.8, 100)
    upstream, error = np.append(upstream, worse), np.append(error, 0.15 + 0.8 * worse**1.4)
    fitted, on_hull = downstream.fit_downstream(upstream, error)
    assert on_hull.x.size == 25
    assert [v[0] for v in fitted.natural().values()] == pytest.approx([0.8, 1.5, 0.05], rel=1e-2)
    path = tmp_path / "runs.csv"
    noisy = error * np.exp(0.02 * rng.standard_normal(error.size))
    path.write_text("up,error\n" + "".join(f"{u},{e}\n" for u, e in zip(upstream, noisy, strict=True)))
    first, *lines = downstream.report(path, "up", "error", 100).splitlines()
    fitted, on_hull = downstream.fit_downstream(upstream, noisy)
    assert first.startswith(f"e_DS = e_IR + k e_US^alpha, fitted to the {on_hull.x.size} of 125 runs")
    for line, name in zip(lines, ("k", "alpha", "e_IR"), strict=True):
        shown, value, _, low, _, high = line.split()
        assert shown == f"{name}:" and float(value[:-1]) == pytest.approx(fitted.natural()[name][0], rel=1e-3)
        assert float(low) < float(value[:-1]) < float(high)


def test_the_lower_hull_leaves_out_runs_that_a_mixture_beats():
    upstream, error = np.array([0.1, 0.2, 0.3, 0.2, 0.4, 0.25]), np.array([0.5, 0.3, 0.29, 0.35, 0.1, 0.26])
    assert downstream.lower_hull(upstream, error).tolist() == [True, True, False, False, True, False]
    assert downstream.lower_hull(np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.1])).tolist() == [True, False, True]
