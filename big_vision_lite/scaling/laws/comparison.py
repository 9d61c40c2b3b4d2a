"""Which law describes a curve, and which extrapolates it: information beside the answer, which takes all laws.

As Alabdulmohsin et al. (2022) compare laws: each is fitted to the smaller sizes and scored on the larger ones by the
RMS of the log error. Points marked ``extrapolate`` are scored once, by fits to all others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws import fitting
from big_vision_lite.scaling.laws.curves import Curve
from big_vision_lite.scaling.laws.families import LAWS
from big_vision_lite.scaling.laws.fitting import LawFit
from big_vision_lite.scaling.laws.law import Law

CUT = 2
"""To be scored, a law is fitted to sizes up to the largest divided by this; the rest are predicted."""


@dataclasses.dataclass(frozen=True)
class LawScore:
    """How well a law fits and extrapolates a curve, as RMS of the log error; None where there is too little data."""

    law: Law
    fit: LawFit | None
    """To all points that are not held out."""
    inner: float | None
    """On the larger of these sizes, when fitted to the smaller ones."""
    held_out: float | None
    """On the held-out points."""
    note: str = ""


def compare(curve: Curve, laws: Sequence[Law] = LAWS) -> tuple[LawScore, ...]:
    """Fit each law to a curve, and to its smaller sizes."""
    train = curve.train
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
            if fitted.at_bounds:
                note = f"at a bound: {', '.join(fitted.at_bounds)}"
            try:
                inner = score(fitting.fit(law, train.take(smaller)), train.take(~smaller))
            except UserError:
                needed = f"inner needs {len(law.parameters)} sizes up to half the largest"
                note = "; ".join(filter(None, (note, needed)))
        scores.append(LawScore(law, fitted, inner, held_out, note))
    return tuple(scores)


def score(fitted: LawFit, curve: Curve) -> float:
    """RMS of ln(predicted) - ln(observed) over a curve's points; inf if a prediction is not above 0."""
    predicted = fitted.predict(curve.x)[0]
    if (predicted <= 0).any():
        return math.inf
    return float(np.sqrt(np.mean((np.log(predicted) - np.log(curve.error))**2)))


def table(scores: Sequence[LawScore]) -> list[list[str]]:
    """Cells of the table of laws, header first. The columns of numbers are `LawScore`'s."""
    any_held_out = any(score.held_out is not None for score in scores)
    rows = [["law", "form", "fit", "inner", *(["extrapolate"] if any_held_out else []), "parameters", ""]]
    for score in scores:
        fit = score.fit
        rms = [None if fit is None else fit.rmse, score.inner, *([score.held_out] if any_held_out else [])]
        parameters = "" if fit is None else ", ".join(f"{k} {v[0]:.3g}" for k, v in fit.natural().items())
        rows.append([score.law.name, score.law.formula, *("-" if value is None else f"{value:.4f}" for value in rms),
                     parameters, score.note])
    return rows
