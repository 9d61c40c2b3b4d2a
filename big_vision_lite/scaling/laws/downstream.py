"""The law of downstream against upstream error of Abnar et al. (2021), for the runs in a csv file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from big_vision_lite.scaling.laws import fitting
from big_vision_lite.scaling.laws.curves import Curve, from_points, read_number, read_rows
from big_vision_lite.scaling.laws.families import Downstream
from big_vision_lite.scaling.laws.fitting import LawFit


def lower_hull(upstream: np.ndarray, downstream: np.ndarray) -> np.ndarray:
    """Which points lie on the lower convex hull of downstream against upstream error: the runs that no mixture of
    others beats (Abnar et al. 2021, section 2)."""
    corners: list[int] = []
    for i in np.lexsort((downstream, upstream)).tolist():
        if corners and upstream[i] == upstream[corners[-1]]:
            continue
        while len(corners) > 1 and _turn(upstream, downstream, corners[-2], corners[-1], i) <= 0:
            corners.pop()
        corners.append(i)
    return np.isin(np.arange(upstream.size), corners)


def _turn(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> float:
    return float((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]))


def fit_downstream(upstream: np.ndarray, error: np.ndarray) -> tuple[LawFit, Curve]:
    """Abnar's law fitted to the lower hull of runs, and the hull.

    Raises:
      UserError: errors that are not positive numbers, or fewer runs on the hull than the law has parameters.
    """
    runs = from_points(upstream, error)
    on_hull = runs.take(lower_hull(runs.x, runs.error))
    return fitting.fit(Downstream(), on_hull), on_hull


def report(path: Path, upstream: str, error: str, samples: int) -> str:
    """The law of downstream against upstream error for the runs in a csv file, with intervals, as text.

    Raises:
      UserError: see `curves.read_rows` and `fit_downstream`.
    """
    rows = read_rows(path)
    values = [[read_number(path, line, name, row) for line, row in enumerate(rows, 2)] for name in (upstream, error)]
    fitted, on_hull = fit_downstream(np.array(values[0]), np.array(values[1]))
    parameters = fitted.natural()
    spread = fitted.natural(_samples(fitted, on_hull, samples))
    lines = [f"{fitted.law.formula}, fitted to the {on_hull.x.size} of {len(rows)} runs on the lower convex hull, "
             f"RMS of the log error {fitted.rmse:.4f}"]
    for name, value in parameters.items():
        low, high = np.quantile(spread[name], (0.025, 0.975))
        lines.append(f"  {name}: {value[0]:.4g}, between {low:.4g} and {high:.4g}")
    return "\n".join(lines)


def _samples(fitted: LawFit, curve: Curve, samples: int) -> np.ndarray:
    """Parameters of fits to copies of the curve with as much noise again as its residuals show, ``[samples, p]``."""
    log_error = np.log(curve.error)
    residuals = log_error - np.log(fitted.predict(curve.x)[0])
    noise = float(np.sqrt((residuals**2).sum() / max(curve.x.size - len(fitted.law.parameters), 1)))
    copies = log_error + noise * np.random.default_rng(0).standard_normal((samples, curve.x.size))
    return fitting.refit(fitted, curve, copies, np.ones(curve.x.size), noise)
