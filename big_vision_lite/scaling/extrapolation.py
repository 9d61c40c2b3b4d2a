"""Which law holds for a curve, judged by extrapolation, and what it says of sizes not yet tried.

A law is chosen as Alabdulmohsin et al. (2022) compare theirs: fitted to the smaller sizes, scored on the larger ones by
the root mean square of the log error. Rows marked ``extrapolate`` take no part in it; they are read once, at the end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.scaling import fitting
from big_vision_lite.scaling.curves import Curve, from_points, read_number, read_rows
from big_vision_lite.scaling.fitting import Fit
from big_vision_lite.scaling.laws import LAWS, Downstream, Law

CUT = 2
"""A law is fitted to sizes up to the largest divided by this, and scored on the rest."""
TIE = 1.01
"""Laws whose score is within this factor of the best are as good, and the one with fewer parameters is chosen."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a law is worth on a curve; root mean squares of the log error are None where they cannot be had."""

    law: Law
    fit: Fit | None
    """To all rows that are not held back."""
    inner: float | None
    """Of the larger sizes among them, when fitted to the smaller ones: what the choice goes by."""
    held: float | None
    """Of the held rows."""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All laws on one curve, and the one that extrapolates best."""

    curve: Curve
    rows: tuple[Row, ...]
    chosen: Row

    @property
    def fit(self) -> Fit:
        assert self.chosen.fit is not None
        return self.chosen.fit


@dataclasses.dataclass(frozen=True)
class Reach:
    """The size at which an error is reached: inf where the law never gets there."""

    error: float
    size: float
    low: float
    high: float
    never: float
    """Share of the draws that never get there."""

    def __str__(self) -> str:
        if math.isinf(self.size):
            said = f"error {self.error:g} is never reached: the fitted law levels off above it"
            return said + (f"; {1 - self.never:.0%} of the draws reach it" if self.never < 1 else "")
        between = (f"at least {number(self.low)}, with no upper bound" if math.isinf(self.high) else
                   f"between {number(self.low)} and {number(self.high)}")
        text = f"to reach error {self.error:g} you need about {number(self.size)} images, {between}"
        return text + (f" ({self.never:.1%} of the draws never reach it)" if self.never else "")


def compare(curve: Curve, laws: Sequence[Law] = LAWS) -> Comparison:
    """Fit all laws to a curve and choose one.

    A law with more parameters than the smaller sizes are takes no part in the choice. Where there are too few sizes to
    hold any back, the law with the fewest parameters that fits closest is chosen, and its row says so.

    Raises:
      UserError: fewer different sizes than any law has parameters, or errors that are all equal.
    """
    train = curve.train
    named = f"curve {curve.name!r}: " if curve.name else ""
    if np.unique(train.error).size == 1 and train.x.size > 1:
        raise UserError(f"{named}all {train.x.size} errors are {train.error[0]:g}: no law can be told from another; "
                        "use sizes or a metric at which errors differ")
    smaller = train.x <= train.x.max() / CUT
    rows = []
    for law in laws:
        fitted = inner = held = None
        note = ""
        try:
            fitted = fitting.fit(law, train)
        except UserError:
            note = f"needs {len(law.parameters)} sizes"
        else:
            if curve.held.any():
                held = score(fitted, curve.take(curve.held))
            try:
                inner = score(fitting.fit(law, train.take(smaller)), train.take(~smaller))
            except UserError:
                note = f"needs {len(law.parameters)} sizes up to a half of the largest to be chosen"
        rows.append(Row(law, fitted, inner, held, note))
    able = [row for row in rows if row.fit is not None]
    if not able:
        raise UserError(f"{named}{train.sizes} different sizes, fewer than the "
                        f"{min(len(law.parameters) for law in laws)} parameters of the simplest law; add sizes")
    judged = [row for row in able if row.inner is not None]
    if judged:
        best = min(row.inner for row in judged)
        chosen = min((row for row in judged if row.inner <= TIE * best),
                     key=lambda row: (len(row.law.parameters), row.inner))
    else:
        chosen = min(able, key=lambda row: (len(row.law.parameters), row.fit.rmse))
        chosen = dataclasses.replace(chosen, note="too few sizes to judge laws by extrapolation")
        rows = [chosen if row.law is chosen.law else row for row in rows]
    return Comparison(curve, tuple(rows), chosen)


def score(fitted: Fit, curve: Curve) -> float:
    """Root mean square of ln(predicted) - ln(observed) at a curve's rows; inf where a prediction is not above 0."""
    predicted = fitted.predict(curve.x)[0]
    if (predicted <= 0).any():
        return math.inf
    return float(np.sqrt(np.mean((np.log(predicted) - np.log(curve.error))**2)))


def reach(fitted: Fit, curve: Curve, draws: np.ndarray, error: float) -> Reach:
    """How many images an error takes, with the 95 % interval of the draws of `fitting.bootstrap`."""
    sizes = fitted.reach(error, draws)
    low, high = fitting.interval(sizes, int((~curve.held).sum()), len(fitted.law.parameters))
    return Reach(error, float(fitted.reach(error)[0]), low, high, float(np.isinf(sizes).mean()))


def number(value: float) -> str:
    """A count for people: 12,300, 4.5 million, 3.1e+15."""
    if math.isinf(value):
        return "no bound"
    if value < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
    for unit, size in (("million", 1e6), ("billion", 1e9)):
        if value < 999.5 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.2e}"


def table(comparison: Comparison, draws: np.ndarray | None = None) -> list[list[str]]:
    """Cells of the table of laws, header first: error of each fit, extrapolation inside, extrapolation to held rows.

    Args:
      draws: of the chosen law; gives its exponent an interval.
    """
    any_held = any(row.held is not None for row in comparison.rows)
    made = [["law", "form", "fit", "inner", *(["extrapolate"] if any_held else []), "parameters", ""]]
    for row in comparison.rows:
        scores = [None if row.fit is None else row.fit.rmse, row.inner, *([row.held] if any_held else [])]
        notes = [row.note] if row.note else []
        if row is comparison.chosen:
            notes.insert(0, "chosen")
            if draws is not None and "c" in row.law.parameters:
                points = int((~comparison.curve.held).sum())
                exponents = row.fit.natural(draws)["c"]
                low, high = fitting.interval(exponents, points, len(row.law.parameters))
                notes.append(f"c between {low:.3g} and {high:.3g}")
        said = "" if row.fit is None else ", ".join(f"{k} {v[0]:.3g}" for k, v in row.fit.natural().items())
        made.append([row.law.name, row.law.formula, *("-" if s is None else f"{s:.4f}" for s in scores), said,
                     "; ".join(notes)])
    return made


def hull(upstream: np.ndarray, downstream: np.ndarray) -> np.ndarray:
    """Which points lie on the lower convex hull of downstream against upstream error: the runs that no mixture of
    others beats (Abnar et al. 2021, section 2)."""
    order = np.lexsort((downstream, upstream))
    kept: list[int] = []
    for i in order.tolist():
        if kept and upstream[i] == upstream[kept[-1]]:
            continue
        while len(kept) > 1 and _turn(upstream, downstream, kept[-2], kept[-1], i) <= 0:
            kept.pop()
        kept.append(i)
    on = np.zeros(upstream.size, bool)
    on[kept] = True
    return on


def _turn(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> float:
    return float((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]))


def downstream(upstream: np.ndarray, error: np.ndarray) -> tuple[Fit, Curve]:
    """Abnar's law fitted to the hull of runs, and the hull.

    Raises:
      UserError: errors are not positive numbers, or fewer runs lie on the hull than the law has parameters.
    """
    runs = from_points(upstream, error)
    on_hull = runs.take(hull(runs.x, runs.error))
    return fitting.fit(Downstream(), on_hull), on_hull


def downstream_report(path: Path, upstream: str, error: str, draws: int) -> str:
    """What downstream error is left when the upstream error falls to 0, for the runs in a csv, as text.

    Raises:
      UserError: see `curves.read_rows` and `downstream`.
    """
    rows = read_rows(path)
    values = [[read_number(path, line, name, row) for line, row in enumerate(rows, 2)] for name in (upstream, error)]
    fitted, on_hull = downstream(np.array(values[0]), np.array(values[1]))
    found = fitted.natural()
    resampled = fitted.natural(fitting.bootstrap(fitted, on_hull, draws))
    lines = [f"{fitted.law.formula}, fitted to the {on_hull.x.size} of {len(rows)} runs on the lower convex hull, "
             f"root mean square of the log error {fitted.rmse:.4f}"]
    for name, value in found.items():
        low, high = fitting.interval(resampled[name], on_hull.x.size, len(found))
        lines.append(f"  {name}: {value[0]:.4g}, between {low:.4g} and {high:.4g}")
    return "\n".join(lines)
