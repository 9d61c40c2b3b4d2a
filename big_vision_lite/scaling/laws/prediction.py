"""Predicts errors at sizes that were not tried, by all laws together.

No single law can be told to hold beyond the data, and the one that fits best rarely extrapolates best. So each law is
fitted many times, to copies of the curve that noise might have given as well; the prediction is the distribution of
all of these fits, in which laws count alike. Close to the largest size they agree, further away the interval widens as
they part. A curve may also leave all of them: how fast it falls beyond the data is uncertain in itself (`BEND`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws import fitting, noise
from big_vision_lite.scaling.laws.curves import Curve, format_count
from big_vision_lite.scaling.laws.families import LogLinear, Power, laws
from big_vision_lite.scaling.laws.fitting import LawFit
from big_vision_lite.scaling.laws.law import Law

SAMPLES = 64
"""Fits per law."""
BEND = 0.15
"""Scale of the share by which a curve beyond its data may fall faster or slower than a law: Student's t with
`BEND_FREEDOM` degrees of freedom. The least of 0.05, 0.1 and 0.15 with which 95 % intervals hold the truth in at least
87 % of 30 curves in every cell of benchmarks/laws.py --synthetic."""
BEND_FREEDOM = 3
ABOVE_CHANCE = 1.1
"""Errors at the largest size up to this many times that of guessing are taken for noise."""
FEWEST_SIZES = 4
"""With fewer different sizes, three parameters fit any curve: there is no answer."""
HORIZON = 1e4
"""Sizes up to this many times the largest are considered; an error that takes more is not reached."""
GRID = 400
LEVELS = (0.5, 0.95)
"""Probabilities of the intervals that are given."""
SHARES = {0.5: 0.35, 0.8: 0.75, 0.95: 0.95}
"""Share of all samples in the middle that make the interval of a probability: laws differ more from each other than
real curves from their middle. Chosen by benchmarks/laws.py --choose."""


class TooFewSizes(UserError):
    """A curve that allows no answer yet; the message names sizes to add."""


@dataclasses.dataclass(frozen=True)
class Range:
    """A median with its intervals, as (low, high) for each of `LEVELS`."""

    median: float
    intervals: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class SizeEstimate:
    """The size that an error takes; inf where it is not reached within `HORIZON`."""

    error: float
    size: Range
    reached: float
    """Probability that it is reached within `HORIZON` times the largest size."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The fits of all laws to a curve, as a distribution of curves.

    Args:
      chance: error of guessing, which no prediction exceeds; None if there is none, as for a loss.
    """

    curve: Curve
    chance: float | None
    fits: tuple[LawFit, ...]
    """To the curve itself, per law."""
    samples: tuple[Float[np.ndarray, "samples _"], ...]
    """Parameters of fits to perturbed copies of the curve, per law."""
    bends: Float[np.ndarray, " m"]
    """Per sample of all laws, the factor on what a curve falls beyond its largest size."""
    noise: float
    """Standard deviation of the log error from run to run at the largest sizes."""

    @property
    def largest(self) -> float:
        return float(self.curve.train.x.max())

    def sampled(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, "m n"]:
        """Log errors of all samples at sizes, without those that leave (0, chance] there or have risen before: a curve
        does neither. There may be none, if the only law is log-linear."""
        logs = self._paths(x)
        tried = self.grid <= np.max(x, initial=self.largest)
        return logs[np.isfinite(logs).all(axis=1) & self._falls(tried)]

    def _paths(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, "m n"]:
        sizes = np.append(x, self.largest)
        with np.errstate(divide="ignore"):
            logs = np.concatenate([np.log(np.maximum(fitted.predict(sizes, theta), 0.0))
                                   for fitted, theta in zip(self.fits, self.samples, strict=True)])
        logs, end = logs[:, :-1], logs[:, -1:]
        with np.errstate(invalid="ignore"):  # where a curve is at 0 and does not bend
            bent = np.where(x > self.largest, end + (logs - end) * self.bends[:, None], logs)
        return bent if self.chance is None else np.minimum(bent, np.log(self.chance))

    @functools.cached_property
    def grid(self) -> Float[np.ndarray, " GRID"]:
        """Sizes from a tenth of the smallest to the horizon."""
        return np.geomspace(self.curve.train.x.min() / 10, self.largest * HORIZON, GRID)

    @functools.cached_property
    def _on_grid(self) -> Float[np.ndarray, "m GRID"]:
        return self._paths(self.grid)

    def _falls(self, where: Bool[np.ndarray, " GRID"]) -> Bool[np.ndarray, " m"]:
        """Which samples do not rise at some of the grid's sizes, from the smallest that was tried."""
        logs = self._on_grid[:, where & (self.grid >= self.curve.train.x.min())]
        return ~(logs[:, 1:] > logs[:, :-1] + 1e-6).any(axis=1)

    def errors(self, x: Sequence[float] | Float[np.ndarray, " n"]) -> list[Range]:
        """The error at each size; nan where no law has an answer."""
        return [_range(np.exp(self.sampled(np.array([size], float))[:, 0])) for size in x]

    def sizes(self, error: float) -> Float[np.ndarray, " m"]:
        """The size at which each sample falls to an error; inf beyond the horizon, the smallest of `grid` if it is
        always below."""
        logs, log_x = self._on_grid[self._falls(np.ones(GRID, bool))], np.log(self.grid)
        below = logs <= np.log(error)
        row, first = np.arange(len(logs)), below.argmax(axis=1)
        before = np.maximum(first - 1, 0)
        upper, lower = logs[row, before], np.maximum(logs[row, first], -700.0)
        share = np.clip((upper - np.log(error)) / np.maximum(upper - lower, 1e-12), 0, 1)
        reached = np.exp(log_x[before] + share * (log_x[first] - log_x[before]))
        return np.where(below.any(axis=1), reached, np.inf)

    def size_for(self, error: float) -> SizeEstimate:
        """How much data an error takes."""
        sizes = self.sizes(error)
        return SizeEstimate(error, _range(sizes), float(np.isfinite(sizes).mean()))


def _range(values: np.ndarray) -> Range:
    if not values.size:
        return Range(math.nan, ((math.nan, math.nan),) * len(LEVELS))
    return Range(float(np.quantile(values, 0.5, method="inverted_cdf")),
                 tuple(interval(values, level) for level in LEVELS))


def interval(values: Float[np.ndarray, " m"], level: float) -> tuple[float, float]:
    """The interval of samples that holds the truth with a probability of ``level``, one of `SHARES`."""
    outside = (1 - SHARES[level]) / 2
    low, high = np.quantile(values, (outside, 1 - outside), method="inverted_cdf")
    return float(low), float(high)


def candidates(curve: Curve, chance: float | None) -> tuple[Law, ...]:
    """The laws that a curve has enough sizes for. Log-linear and power laws are no candidates: the former leaves
    (0, chance], the latter is a special case of the others."""
    return tuple(law for law in laws(chance)
                 if len(law.parameters) <= curve.sizes and not isinstance(law, LogLinear | Power))


def predict(curve: Curve, chance: float | None = None, only: Sequence[Law] = (), samples: int = SAMPLES, seed: int = 0
            ) -> Prediction:
    """Fit all laws to the points of a curve that are not held out.

    Args:
      only: the laws to take instead of `candidates`.
      samples: fits per law.

    Raises:
      TooFewSizes: fewer different sizes than `FEWEST_SIZES`.
      UserError: errors that do not differ, that rise with the size, or that end above chance.
    """
    from scipy import stats

    check(curve, chance)
    points = noise.points(curve)
    rng = np.random.default_rng(seed)
    fits, parameters = [], []
    for law in only or candidates(points.curve, chance):
        fitted = fitting.fit(law, points.curve, points.weights)
        fits.append(fitted)
        parameters.append(fitting.refit(fitted, points.curve, points.perturbed(rng, samples), points.weights,
                                        float(np.median(points.noise))))
    # Its quantiles in random order vary less from seed to seed than draws.
    shares = (rng.permutation(len(fits) * samples) + 0.5) / (len(fits) * samples)
    bends = np.maximum(1 + BEND * stats.t.ppf(shares, BEND_FREEDOM), 0.0)
    return Prediction(curve, chance, tuple(fits), tuple(parameters), bends, float(points.noise[-1]))


def check(curve: Curve, chance: float | None) -> None:
    """Raises: UserError: as `predict`."""
    train = curve.train
    prefix = f"curve {curve.name!r}: " if curve.name else ""
    if np.unique(train.error).size == 1 and train.x.size > 1:
        raise UserError(f"{prefix}all {train.x.size} errors are {train.error[0]:g}: no law can be told from another; "
                        "use sizes or a metric at which errors differ")
    if train.sizes < FEWEST_SIZES:
        raise TooFewSizes(f"{prefix}too few sizes to say: {train.sizes} different ones; run also N = "
                          + ", ".join(map(format_count, sizes_to_add(curve))))
    if np.corrcoef(np.log(train.x), np.log(train.error))[0, 1] > 0.5:
        raise UserError(f"{prefix}errors rise with the size, from {train.error[0]:g} to {train.error[-1]:g}; if they "
                        "are accuracies, give 1 minus them, or a results file with --score")
    largest = float(np.median(train.error[train.x == train.x[-1]]))
    if chance is not None and largest > ABOVE_CHANCE * chance:
        raise UserError(f"{prefix}the error at the largest size, {largest:g}, is above that of guessing, {chance:g}; "
                        "expected --chance as a score for a results file, as an error for a file of errors")


def sizes_to_add(curve: Curve) -> list[float]:
    """Sizes with which a curve of fewer than `FEWEST_SIZES` would have one more than that: halves of the smallest
    first, as they cost least, then twice the largest."""
    sizes = set(np.unique(curve.train.x).tolist())
    added: list[float] = []
    while len(sizes) + len(added) <= FEWEST_SIZES:
        added.append(float(f"{min([*sizes, *added]) / 2:.3g}" if len(added) % 2 == 0
                           else f"{max([*sizes, *added]) * 2:.3g}"))
    return sorted(added)
