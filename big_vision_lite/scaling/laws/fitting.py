"""Fits laws to curves: robust, weighted, bounded, from several starting points.

Residuals are of the log error. A batch of fits of one law runs at once: all starting points of a curve, or all its
perturbed copies.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws import least_squares
from big_vision_lite.scaling.laws.curves import Curve
from big_vision_lite.scaling.laws.families import Law

FLOOR = 1e-3
"""Predictions are clipped at this share of the lowest error: a straight line may fall below 0."""


@dataclasses.dataclass(frozen=True)
class LawFit:
    """A law fitted to a curve. Methods take and return x in the curve's unit."""

    law: Law
    theta: Float[np.ndarray, " p"]
    log_x0: float
    delta: float
    """Residual of the log error beyond which a point counts as an outlier."""
    floor: float
    rmse: float
    """Of the log error, on the fitted points."""
    bounds: tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]

    @property
    def at_bounds(self) -> tuple[str, ...]:
        """Parameters that a bound holds back, other than an asymptote of 0."""
        low, high = self.bounds
        near = 1e-6 * (high - low)
        return tuple(name for name, value, lowest, highest, close in zip(
            self.law.parameters, self.theta, low, high, near, strict=True)
            if value >= highest - close or (value <= lowest + close and lowest != 0))

    def predict(self, x: Float[np.ndarray, " n"], theta: Float[np.ndarray, "b p"] | None = None
                ) -> Float[np.ndarray, "b n"]:
        """Errors at sizes, by this fit (b = 1) or by each row of ``theta``."""
        theta = self.theta[None] if theta is None else theta
        return self.law.predict(theta, np.log(x) - self.log_x0)[0]

    def natural(self, theta: Float[np.ndarray, "b p"] | None = None) -> dict[str, Float[np.ndarray, " b"]]:
        return self.law.natural(self.theta[None] if theta is None else theta, self.log_x0)


def fit(law: Law, curve: Curve, weights: Float[np.ndarray, " n"] | None = None) -> LawFit:
    """Fit a law to the points of a curve that are not held out.

    The loss is the soft L1 of residuals of the log error. Its scale is three robust standard deviations (MAD / 0.6745)
    of a first fit's residuals.

    Args:
      weights: of the points, with mean 1; by default all 1.

    Raises:
      UserError: fewer different sizes than the law has parameters.
    """
    curve = curve.train
    if curve.sizes < len(law.parameters):
        raise UserError(f"{law.name} has {len(law.parameters)} parameters, the curve {curve.sizes} different sizes; "
                        "add sizes, or choose a law with fewer parameters")
    log_x0 = float(np.log(curve.x).mean())
    z, log_error = np.log(curve.x) - log_x0, np.log(curve.error)
    weights = np.ones(z.size) if weights is None else weights
    bounds = law.bounds(z, curve.error)
    floor = FLOOR * float(curve.error.min())
    best = np.clip(law.starts(z, curve.error), *bounds)
    delta = 0.1
    for steps, kept in ((12, 4), (60, 2), (200, 2)):
        theta, cost = _solve(law, z, log_error, bounds, floor, best, weights, delta, steps)
        best = theta[np.argsort(cost, kind="stable")[:kept]]
        residuals = _residuals(law, best[:1], z, log_error, floor)[0][0]
        if kept == 2:
            delta = max(3 * float(np.median(np.abs(residuals))) / 0.6745, 1e-4)
    return LawFit(law, best[0], log_x0, delta, floor, float(np.sqrt(np.mean(residuals**2))), bounds)


def refit(fitted: LawFit, curve: Curve, log_errors: Float[np.ndarray, "b n"], weights: Float[np.ndarray, " n"],
          noise: float) -> Float[np.ndarray, "b p"]:
    """Parameters of fits to each row of log errors at the sizes of a curve. Each fit starts from ``fitted``.

    Args:
      noise: standard deviation of the log errors; residuals up to three times that are no outliers.
    """
    start = np.tile(fitted.theta, (len(log_errors), 1))
    theta, _ = _solve(fitted.law, np.log(curve.x) - fitted.log_x0, log_errors, fitted.bounds, fitted.floor, start,
                      weights, max(3 * noise, fitted.delta), steps=40)
    return theta


def _residuals(law: Law, theta: np.ndarray, z: np.ndarray, log_error: np.ndarray, floor: float):
    error, slopes = law.predict(theta, z)
    clipped = np.maximum(error, floor)
    return np.log(clipped) - log_error, slopes / clipped[..., None]


def _solve(law: Law, z: np.ndarray, log_error: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], floor: float,
           theta: np.ndarray, weights: np.ndarray, delta: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Run a batch of fits to convergence or for ``steps``; returns theta ``[b, p]`` and costs ``[b]``. Log errors and
    weights may differ from fit to fit (``[b, n]``)."""
    log_error, weights = (np.broadcast_to(values, (len(theta), z.size)) for values in (log_error, weights))
    return least_squares.solve(lambda tried, fits: _residuals(law, tried, z, log_error[fits], floor), bounds, theta,
                               weights, delta, steps)
