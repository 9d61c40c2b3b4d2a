"""Chooses a law for a curve by how well it extrapolates, and predicts sizes that were not tried.

As Alabdulmohsin et al. (2022) compare laws: each is fitted to the smaller sizes and scored on the larger ones by the
RMS of the log error. Points marked ``extrapolate`` play no part in the choice; they are scored once, at the end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws import fitting
from big_vision_lite.scaling.laws.curves import Curve, from_points, read_number, read_rows
from big_vision_lite.scaling.laws.families import LAWS, Downstream, Law
from big_vision_lite.scaling.laws.fitting import LawFit

CUT = 2
"""To be scored, a law is fitted to sizes up to the largest divided by this; the rest are predicted."""
TIE = 1.01
"""Laws that score within this factor of the best are equals; the one with the fewest parameters is chosen."""


@dataclasses.dataclass(frozen=True)
class LawScore:
    """How well a law fits and extrapolates a curve, as RMS of the log error; None where there is too little data."""

    law: Law
    fit: LawFit | None
    """To all points that are not held out."""
    inner: float | None
    """On the larger of these sizes, when fitted to the smaller ones; the law is chosen by it."""
    held_out: float | None
    """On the held-out points."""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All laws on one curve, and the one that extrapolates best."""

    curve: Curve
    scores: tuple[LawScore, ...]
    chosen: LawScore

    @property
    def fit(self) -> LawFit:
        assert self.chosen.fit is not None
        return self.chosen.fit


@dataclasses.dataclass(frozen=True)
class ChosenLaw:
    """The law chosen for a curve, with samples of `fitting.bootstrap`."""

    comparison: Comparison
    samples: np.ndarray


@dataclasses.dataclass(frozen=True)
class SizeEstimate:
    """The size that a target error takes, with its 95 % interval; inf where the law never reaches it."""

    error: float
    size: float
    low: float
    high: float
    unreached: float
    """Share of the bootstrap fits that never reach it."""

    def __str__(self) -> str:
        if math.isinf(self.size):
            text = f"error {self.error:g} is never reached: the fitted law levels off above it"
            return text + (f"; {1 - self.unreached:.0%} of the bootstrap fits reach it" if self.unreached < 1 else "")
        interval = (f"at least {format_count(self.low)}, with no upper bound" if math.isinf(self.high) else
                    f"between {format_count(self.low)} and {format_count(self.high)}")
        text = f"to reach error {self.error:g} you need about {format_count(self.size)} images, {interval}"
        return text + (f" ({self.unreached:.1%} of the bootstrap fits never reach it)" if self.unreached else "")


def compare(curve: Curve, laws: Sequence[Law] = LAWS) -> Comparison:
    """Fit all laws to a curve and choose one.

    A law with more parameters than there are smaller sizes is not considered. If that leaves none, the law with the
    fewest parameters that fits best is chosen, and its note says so.

    Raises:
      UserError: fewer different sizes than any law has parameters, or errors that are all equal.
    """
    train = curve.train
    prefix = f"curve {curve.name!r}: " if curve.name else ""
    if np.unique(train.error).size == 1 and train.x.size > 1:
        raise UserError(f"{prefix}all {train.x.size} errors are {train.error[0]:g}: no law can be told from another; "
                        "use sizes or a metric at which errors differ")
    smaller = train.x <= train.x.max() / CUT
    scores = []
    for law in laws:
        fitted = inner = held_out = None
        note = ""
        try:
            fitted = fitting.fit(law, train)
        except UserError:
            note = f"needs {len(law.parameters)} sizes"
        else:
            if curve.held_out.any():
                held_out = score(fitted, curve.take(curve.held_out))
            try:
                inner = score(fitting.fit(law, train.take(smaller)), train.take(~smaller))
            except UserError:
                note = f"needs {len(law.parameters)} sizes up to half the largest to be chosen"
        scores.append(LawScore(law, fitted, inner, held_out, note))
    fits = [s for s in scores if s.fit is not None]
    if not fits:
        raise UserError(f"{prefix}{train.sizes} different sizes, fewer than the "
                        f"{min(len(law.parameters) for law in laws)} parameters of the simplest law; add sizes")
    extrapolated = [s for s in fits if s.inner is not None]
    if extrapolated:
        best = min(s.inner for s in extrapolated)
        chosen = min((s for s in extrapolated if s.inner <= TIE * best), key=lambda s: (len(s.law.parameters), s.inner))
    else:
        chosen = min(fits, key=lambda s: (len(s.law.parameters), s.fit.rmse))
        chosen = dataclasses.replace(chosen, note="too few sizes to judge laws by extrapolation")
        scores = [chosen if s.law is chosen.law else s for s in scores]
    return Comparison(curve, tuple(scores), chosen)


def score(fitted: LawFit, curve: Curve) -> float:
    """RMS of ln(predicted) - ln(observed) over a curve's points; inf if a prediction is not above 0."""
    predicted = fitted.predict(curve.x)[0]
    if (predicted <= 0).any():
        return math.inf
    return float(np.sqrt(np.mean((np.log(predicted) - np.log(curve.error))**2)))


def estimate_size(law: ChosenLaw, error: float) -> SizeEstimate:
    """How many images a target error takes."""
    fit = law.comparison.fit
    sizes = fit.size_at(error, law.samples)
    low, high = fitting.interval(sizes, law.comparison.curve.train.x.size, len(fit.law.parameters))
    return SizeEstimate(error, float(fit.size_at(error)[0]), low, high, float(np.isinf(sizes).mean()))


def format_count(value: float) -> str:
    """Such as 12,300, 4.5 million, 3.1e+15."""
    if math.isinf(value):
        return "no bound"
    if value < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
    for unit, size in (("million", 1e6), ("billion", 1e9)):
        if value < 999.5 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.2e}"


def law_table(chosen_law: ChosenLaw) -> list[list[str]]:
    """Cells of the table of laws, header first. The columns of numbers are `LawScore`'s."""
    comparison = chosen_law.comparison
    any_held_out = any(score.held_out is not None for score in comparison.scores)
    rows = [["law", "form", "fit", "inner", *(["extrapolate"] if any_held_out else []), "parameters", ""]]
    for score in comparison.scores:
        law, fit = score.law, score.fit
        rms = [None if fit is None else fit.rmse, score.inner, *([score.held_out] if any_held_out else [])]
        notes = [score.note] if score.note else []
        if score is comparison.chosen:
            notes.insert(0, "chosen")
            if "c" in law.parameters:
                exponents, points = fit.natural(chosen_law.samples)["c"], comparison.curve.train.x.size
                low, high = fitting.interval(exponents, points, len(law.parameters))
                notes.append(f"c between {low:.3g} and {high:.3g}")
        parameters = "" if fit is None else ", ".join(f"{k} {v[0]:.3g}" for k, v in fit.natural().items())
        rows.append([law.name, law.formula, *("-" if value is None else f"{value:.4f}" for value in rms), parameters,
                     "; ".join(notes)])
    return rows


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


def downstream_report(path: Path, upstream: str, error: str, bootstrap: int) -> str:
    """The law of downstream against upstream error for the runs in a csv file, with intervals, as text.

    Raises:
      UserError: see `curves.read_rows` and `fit_downstream`.
    """
    rows = read_rows(path)
    values = [[read_number(path, line, name, row) for line, row in enumerate(rows, 2)] for name in (upstream, error)]
    fitted, on_hull = fit_downstream(np.array(values[0]), np.array(values[1]))
    parameters = fitted.natural()
    samples = fitted.natural(fitting.bootstrap(fitted, on_hull, bootstrap))
    lines = [f"{fitted.law.formula}, fitted to the {on_hull.x.size} of {len(rows)} runs on the lower convex hull, "
             f"RMS of the log error {fitted.rmse:.4f}"]
    for name, value in parameters.items():
        low, high = fitting.interval(samples[name], on_hull.x.size, len(parameters))
        lines.append(f"  {name}: {value[0]:.4g}, between {low:.4g} and {high:.4g}")
    return "\n".join(lines)
