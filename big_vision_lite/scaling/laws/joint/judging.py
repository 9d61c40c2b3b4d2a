"""How well a joint law predicts cells that it was not fitted to, and which form extrapolates best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.answers import ERRORS, Terms
from big_vision_lite.scaling.laws.curves import format_count
from big_vision_lite.scaling.laws.joint import surface
from big_vision_lite.scaling.laws.joint.cells import Cells
from big_vision_lite.scaling.laws.joint.posterior import natural
from big_vision_lite.scaling.laws.joint.surface import JointLaw
from big_vision_lite.scaling.laws.prediction import LEVELS, SAMPLES, interval

CUT = 4.0
"""Cells with S or D above the largest divided by this are held out."""
SHOWN = 8
"""Forms in a table."""
LOW_SCORE = 0.5
"""Below it, scores are judged by their relative error too."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Predictions of held-out cells by a law fitted to the others."""

    law: JointLaw
    held_out: Cells
    predicted: Float[np.ndarray, " n"]
    """Errors."""
    intervals: Float[np.ndarray, "n 2"]
    """Of 95 %, of the mean of as many seeds as each cell has."""
    forms: tuple[tuple[str, float], ...]
    """RMS of the log error at the held-out cells, per form, best first: information, as none was chosen by it."""

    @property
    def relative(self) -> float:
        """Mean relative error of the error."""
        return float(np.mean(np.abs(self.predicted / self.held_out.error - 1)))

    @property
    def bias(self) -> float:
        """Mean of ln(predicted error / observed error): above 0 if predictions are too pessimistic."""
        return float(np.mean(np.log(self.predicted / self.held_out.error)))

    def relative_in_score(self, terms: Terms) -> tuple[float, int]:
        """Mean relative error in the score over cells with scores below `LOW_SCORE`, and their number; nan for none."""
        observed, predicted = terms.to_metric(self.held_out.error), terms.to_metric(self.predicted)
        low = (observed < LOW_SCORE) & terms.higher_is_better
        return (float(np.mean(np.abs(predicted[low] / observed[low] - 1))) if low.any() else math.nan, int(low.sum()))

    @property
    def holds(self) -> Bool[np.ndarray, " n"]:
        """Whether each interval holds its cell."""
        return (self.intervals[:, 0] <= self.held_out.error) & (self.held_out.error <= self.intervals[:, 1])

    def in_words(self, terms: Terms = ERRORS) -> str:
        """One sentence."""
        relative, count = self.relative_in_score(terms)
        below = f", {relative:.1%} in {terms.name} where that is below {LOW_SCORE:g} (n = {count})" if count else ""
        return (f"held out, {len(self.held_out)} cells with more than a quarter of the largest images or images seen, "
                f"predicted from the other {len(self.law.cells)}: mean relative error {self.relative:.1%} in the error"
                f"{below}; 95 % intervals hold {self.holds.sum()} of {len(self.held_out)}")

    def table(self, terms: Terms = ERRORS) -> list[list[str]]:
        """Cells of a table of the held-out cells, header first."""
        cells = self.held_out
        rows = [["images", "images seen", "passes", "network", "wrong labels", "seeds", terms.name, "predicted",
                 "95 % interval", "holds"]]
        for i, (low, high) in enumerate(self.intervals.tolist()):
            noise = f"{cells.noise[i]:.0%} {cells.kind[i]}".strip()
            rows.append([f"{cells.images[i]:,.0f}", f"{cells.seen[i]:,.0f}", f"{cells.seen[i] / cells.images[i]:.3g}",
                         cells.network[i], noise, str(cells.seeds[i]), terms.value(cells.error[i]),
                         terms.value(self.predicted[i]), terms.between((low, high)), "yes" if self.holds[i] else "no"])
        return rows


def held_out(cells: Cells) -> Bool[np.ndarray, " n"]:
    """Cells with S or D above a quarter of the largest (`CUT`)."""
    return (cells.seen > cells.seen.max() / CUT) | (cells.images > cells.images.max() / CUT)


def judge(cells: Cells, chance: float | None = None, samples: int = SAMPLES, seed: int = 0) -> Judgement:
    """Fit the law to the cells that are not held out, and predict the others.

    Args:
      cells: without those that `Cells.memorised` marks.

    Raises:
      UserError: no cell is held out, or too few are left to fit.
    """
    larger = held_out(cells)
    smaller = cells.take(~larger)
    try:
        law = surface.fit(smaller, chance, samples, seed)
    except UserError as error:
        raise UserError(f"nothing can be held out: of cells up to a quarter of the largest sizes, {error}") from None
    # Of a network or a kind of noise that only large cells have, the law knows nothing.
    known = np.array([network in smaller.networks and (noise == 0 or kind in smaller.kinds)
                      for network, noise, kind in zip(cells.network, cells.noise, cells.kind, strict=True)])
    others = cells.take(larger & known)
    if not len(others):
        raise UserError("nothing can be held out: no network or kind of noise has both small and large cells")
    logs = law.sampled(others.images, others.seen, others.operations, others.noise, others.kind)
    # What is compared is the mean of a few seeds, which scatters around the law.
    scatter = np.random.default_rng(seed).standard_normal(logs.shape) * others.standard_error
    intervals = np.exp([interval(values, LEVELS[-1]) for values in (logs + scatter).T])
    return Judgement(law, others, np.exp(np.median(logs, axis=0)), intervals, _compared(law, others))


def _compared(law: JointLaw, others: Cells) -> tuple[tuple[str, float], ...]:
    at = law.reference.of(others)
    return tuple(sorted(((one.form.name, _rms(one.form.predict(one.theta[None], at)[0][0] - np.log(others.error)))
                         for one in law.fits), key=lambda scored: scored[1]))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def forms_table(law: JointLaw, judgement: Judgement | None = None, most: int = SHOWN) -> list[list[str]]:
    """Cells of the table of forms, header first: fit to all cells, extrapolation, parameters. Best ``most`` first."""
    scores = dict(judgement.forms) if judgement is not None else {}
    rows = [["form", "fit", "held out", "parameters", ""]]
    for one in law.fits[:most]:
        parameters = ", ".join(f"{name} {values[0]:.3g}" for name, values in natural(one.form, one.theta[None]).items())
        rows.append([one.form.name, f"{one.rmse:.4f}",
                     f"{scores[one.form.name]:.4f}" if one.form.name in scores else "-", parameters,
                     "" if one.samples is not None else "ruled out"])
    if len(law.fits) > most:
        rows.append([f"and {len(law.fits) - most} more", "", "", "", ""])
    return rows


def extents(cells: Cells, memorised: int = 0) -> Sequence[str]:
    """What the cells cover, in words."""
    lines = [f"{len(cells)} cells of {int(cells.seeds.sum())} runs: {_range(cells.images)} images, "
             f"{_range(cells.seen)} images seen, {_range(cells.seen / cells.images)} passes, "
             f"{len(cells.networks)} network{'s' * (len(cells.networks) > 1)}"
             + (f", up to {cells.noise.max():.0%} wrong labels" if cells.kinds else "")]
    if memorised:
        lines.append(f"error rises again in {memorised} cells with many passes (memorised): the law is of the others")
    return lines


def _range(values: np.ndarray) -> str:
    low, high = (format_count(float(value)) for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
