"""How noisy a curve is, and how far its points may be trusted to follow a law."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from big_vision_lite.scaling.laws import fitting
from big_vision_lite.scaling.laws.broken import Broken
from big_vision_lite.scaling.laws.curves import Curve
from big_vision_lite.scaling.laws.families import Power, Shifted

MOST_POINTS = 60
"""Points of longer curves are averaged: more would not narrow an answer, as neighbours err alike."""
FEWEST_CELLS = 9
"""Averages that suffice to fit every law."""
DEPARTURE = 0.1
"""Standard deviation of a law's departure from the curve, as a share of the log error's change up to the largest size.
Chosen by benchmarks/laws.py --choose."""
PRIOR = 4.0
"""Degrees of freedom with which the variance pooled over sizes counts towards that of each size."""
USUAL_NOISE, USUAL_POINTS = 0.02, 2.0
"""Standard deviation of the log error from seed to seed, and the number of points that this assumption counts for."""


@dataclasses.dataclass(frozen=True)
class Points:
    """A curve's points as a fit sees them, at most `MOST_POINTS`.

    ``noise`` and ``departure`` are standard deviations of the log error: the first is independent from point to point
    but for ``correlation`` of neighbours, the second is one draw for all points.
    """

    curve: Curve
    noise: Float[np.ndarray, " n"]
    correlation: float
    departure: Float[np.ndarray, " n"]

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """Inverse variances, normalized to mean 1: the sizes nearest to the largest count most."""
        weights = 1 / (self.noise**2 + self.departure**2)
        return weights / weights.mean()

    def perturbed(self, rng: np.random.Generator, samples: int) -> Float[np.ndarray, "samples n"]:
        """Log errors that might have been observed as well."""
        n = self.noise.size
        steps = rng.standard_normal((samples, n))
        for i in range(1, n):
            steps[:, i] = self.correlation * steps[:, i - 1] + np.sqrt(1 - self.correlation**2) * steps[:, i]
        return (np.log(self.curve.error) + steps * self.noise
                + rng.standard_normal((samples, 1)) * self.departure)


def points(curve: Curve) -> Points:
    """The points of a curve that are not held out, with estimates of their noise."""
    curve = curve.train
    trend, residuals, noise = _trend(curve)
    correlation = _correlation(curve, residuals)
    if curve.x.size > MOST_POINTS:
        curve, count = _averaged(curve)
        spread = (1 + correlation) / (1 - correlation)  # of the mean of points that err alike
        noise = noise.mean() * np.sqrt(np.minimum(np.where(count > 1, spread / count, 1.0), 1.0))
        correlation = 0.0
    change = np.log(trend.predict(curve.x)[0]) - np.log(trend.predict(curve.x[-1:])[0])
    return Points(curve, noise, correlation, DEPARTURE * np.abs(change))


def _trend(curve: Curve) -> tuple[fitting.LawFit, np.ndarray, np.ndarray]:
    """The flexible law that describes a curve best, its residuals, and the noise of each point."""
    best: tuple[float, fitting.LawFit, np.ndarray] | None = None
    for law in (Power(), Shifted(), Broken(1)):
        if best is not None and curve.sizes < len(law.parameters):
            continue
        fitted = fitting.fit(law, curve)
        residuals = np.log(curve.error) - np.log(fitted.predict(curve.x)[0])
        freedom = max(curve.x.size - len(law.parameters), 0)
        variance = ((residuals**2).sum() + USUAL_POINTS * USUAL_NOISE**2) / (freedom + USUAL_POINTS)
        if best is None or variance < best[0]:
            best = variance, fitted, residuals
    assert best is not None
    pooled, per_size = _seed_variances(curve)
    return best[1], best[2], np.sqrt(per_size if pooled else np.full(curve.x.size, best[0]))


def _seed_variances(curve: Curve) -> tuple[bool, Float[np.ndarray, " n"]]:
    """Whether sizes are repeated, and the variance of each point's log error over the seeds of its size.

    The variance of a few seeds is itself uncertain, so each is shrunk towards the one pooled over sizes.
    """
    _, at, count = np.unique(curve.x, return_inverse=True, return_counts=True)
    log_error = np.log(curve.error)
    mean = np.bincount(at, log_error) / count
    square = np.bincount(at, (log_error - mean[at])**2)
    freedom = count - 1
    pooled = (square.sum() + USUAL_POINTS * USUAL_NOISE**2) / (freedom.sum() + USUAL_POINTS)
    return bool(freedom.sum() >= 4), ((square + PRIOR * pooled) / (freedom + PRIOR))[at]


def _correlation(curve: Curve, residuals: np.ndarray) -> float:
    """Of the residuals of neighbouring sizes; 0 where sizes are repeated or too few to tell."""
    if curve.sizes < curve.x.size or curve.x.size < 8 or not residuals.any():
        return 0.0
    lagged = (residuals[1:] * residuals[:-1]).sum() / (residuals**2).sum() + 1 / residuals.size
    return float(np.clip(lagged, 0.0, 0.9))


def _averaged(curve: Curve) -> tuple[Curve, Float[np.ndarray, " m"]]:
    """At most `MOST_POINTS` points, each the geometric mean of neighbours, and how many they are."""
    z = np.log(curve.x)
    cell = np.minimum((MOST_POINTS * (z - z[0]) / (z[-1] - z[0])).astype(int), MOST_POINTS - 1)
    rank = np.unique(z, return_inverse=True)[1]
    if curve.sizes <= MOST_POINTS:  # no size is lost
        cell = rank
    elif np.unique(cell).size < FEWEST_CELLS:  # most sizes lie close together
        cell = MOST_POINTS * rank // curve.sizes
    _, cell, count = np.unique(cell, return_inverse=True, return_counts=True)
    x, error = (np.exp(np.bincount(cell, np.log(values)) / count) for values in (curve.x, curve.error))
    return Curve(curve.name, x, error, np.zeros(x.size, int), np.zeros(x.size, bool)), count.astype(float)
