"""Predictions in words, in the terms of a metric."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from big_vision_lite.scaling.laws.curves import Curve, format_count
from big_vision_lite.scaling.laws.prediction import HORIZON, Prediction

ASKED = (2.0, 10.0)
"""Multiples of the largest size at which values are given where none is asked for."""
MULTIPLES = (2.0, 4.0)
"""Of the largest size, that may be run next; so may sizes between those that were run."""
WORTH_RUNNING = 0.9
"""A next size is named if it would leave at most this share of the interval's width."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """How errors and sizes are called.

    Args:
      name: of the metric.
      to_metric: from errors to values of the metric; its own inverse.
      higher_is_better: whether values grow as errors fall.
      budget: what all points have in common, such as "at 153,600 images seen".
    """

    name: str = "error"
    to_metric: Callable[[np.ndarray], np.ndarray] = np.asarray
    higher_is_better: bool = False
    unit: str = "images"
    budget: str = ""

    def convert(self, value: float) -> float:
        """An error as a value of the metric, or a value as an error."""
        return float(self.to_metric(np.array([value]))[0])

    def value(self, error: float) -> str:
        return f"{self.convert(error):.3g}"

    def between(self, interval: tuple[float, float]) -> str:
        low, high = sorted(map(self.convert, interval))
        return f"{low:.3g} to {high:.3g}"


ERRORS = Terms()


def in_words(prediction: Prediction, terms: Terms = ERRORS, sizes: Sequence[float] = (), errors: Sequence[float] = ()
             ) -> list[str]:
    """All answers, a line each: values at sizes (by default `ASKED`), sizes for errors, and the next size to run."""
    sizes = sizes or [multiple * prediction.largest for multiple in ASKED]
    lines = [*(value_at(prediction, size, terms) for size in sizes),
             *(size_for(prediction, error, terms) for error in errors), next_size(prediction, sizes[-1], terms)]
    return [line for line in lines if line]


def value_at(prediction: Prediction, size: float, terms: Terms = ERRORS) -> str:
    """Such as "at 2 million images: accuracy 0.75, 50 % interval 0.74 to 0.76, 95 % interval 0.71 to 0.78"."""
    error, = prediction.errors([size])
    if math.isnan(error.median):
        return (f"at {format_count(size)} {terms.unit}: no answer, as {prediction.fits[0].law.name} falls to an error "
                "of 0 before")
    return (f"at {format_count(size)} {terms.unit}: {terms.name} {terms.value(error.median)}"
            + "".join(f", {level} interval {terms.between(interval)}"
                      for level, interval in zip(("50 %", "95 %"), error.intervals, strict=True)))


def size_for(prediction: Prediction, error: float, terms: Terms = ERRORS) -> str:
    """Such as "accuracy 0.8: about 2 million images, 50 % interval 1.8 to 2.3 million, ..."."""
    estimate = prediction.size_for(error)
    what = f"{terms.name} {terms.value(error)}"
    horizon = f"{format_count(HORIZON * prediction.largest)} {terms.unit}"
    least = float(prediction.grid[0])
    if estimate.size.median <= 1.0001 * least:
        return f"{what}: reached with fewer than {format_count(least)} {terms.unit}"
    if estimate.reached < 0.005:
        budget = f"; that is {terms.budget}, others may reach it" if terms.budget else ""
        return f"{what}: not reached within {horizon}, by any of the fits{budget}"
    chance = f"reached within {horizon} with probability {min(estimate.reached, 0.99):.2f}"
    if estimate.reached >= 0.995:
        chance = f"reached within {horizon} with probability above 0.99"
    if math.isinf(estimate.size.median):
        low = estimate.size.intervals[-1][0]
        at_least = (f"; with 97.5 % probability it takes more than {format_count(low)} {terms.unit}"
                    if math.isfinite(low) else "")
        return f"{what}: {chance}{at_least}"
    return (f"{what}: about {format_count(estimate.size.median)} {terms.unit}"
            + "".join(f", {level} interval {_sizes(interval)}"
                      for level, interval in zip(("50 %", "95 %"), estimate.size.intervals, strict=True))
            + f"; {chance}")


def _sizes(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"above {format_count(low)}" if math.isinf(high) else f"{format_count(low)} to {format_count(high)}"


def next_size(prediction: Prediction, at: float, terms: Terms = ERRORS) -> str:
    """Which size to run next to narrow the interval at a size most; "" if none would narrow it much."""
    low, high = prediction.errors([at])[0].intervals[-1]
    if not high > low:
        return ""
    sizes = possible_sizes(prediction.curve)
    shares = remaining_width(prediction, np.array(sizes), at)
    best = int(np.argmin(shares))
    if shares[best] > WORTH_RUNNING:
        return ""
    width = math.log(high / low)
    return (f"one more run of {format_count(sizes[best])} {terms.unit} would narrow the 95 % interval at "
            f"{format_count(at)} {terms.unit} most: high / low of the error from {math.exp(width):.3g} to about "
            f"{math.exp(shares[best] * width):.3g}")


def possible_sizes(curve: Curve) -> list[float]:
    """Sizes between the five largest of a curve and beyond, rounded to two digits."""
    sizes = np.unique(curve.train.x)[-5:]
    between = np.sqrt(sizes[1:] * sizes[:-1])
    return [float(f"{size:.2g}") for size in (*between, *(sizes[-1] * factor for factor in MULTIPLES))]


def remaining_width(prediction: Prediction, sizes: np.ndarray, at: float) -> np.ndarray:
    """Share of the spread of the log error at a size that a run of each of ``sizes`` would leave, by linear regression
    of the former on the latter over the samples of the prediction (the update of an ensemble Kalman filter). All 1 if
    no sample is above 0 at all of these sizes."""
    logs = prediction.sampled(np.append(sizes, at))
    if not logs.size:
        return np.ones(sizes.size)
    logs = logs - logs.mean(axis=0)
    tried, asked = logs[:, :-1], logs[:, -1]
    explained = (tried * asked[:, None]).mean(axis=0)**2 / ((tried**2).mean(axis=0) + prediction.noise**2)
    return np.sqrt(np.maximum(1 - explained / np.maximum((asked**2).mean(), 1e-30), 0.0))
