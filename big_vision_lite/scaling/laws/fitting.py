"""Fits laws to curves: robust, weighted, bounded, from several starting points.

One solver (Levenberg-Marquardt on residuals of the log error, with steps clipped to the bounds) runs a batch of fits of
one law: all starting points of a curve, or all its bootstrap samples. scipy's runs one fit at a time.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.curves import Curve
from big_vision_lite.scaling.laws.families import Law

FLOOR = 1e-3
"""Predictions are clipped at this share of the lowest error: a straight line may fall below 0."""
PRIOR = 4.0
"""Degrees of freedom with which the variance pooled over sizes counts towards that of each size."""


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

    def predict(self, x: Float[np.ndarray, " n"], theta: Float[np.ndarray, "b p"] | None = None
                ) -> Float[np.ndarray, "b n"]:
        """Errors at sizes, by this fit (b = 1) or by each row of ``theta``."""
        theta = self.theta[None] if theta is None else theta
        return self.law.predict(theta, np.log(x) - self.log_x0)[0]

    def size_at(self, error: float, theta: Float[np.ndarray, "b p"] | None = None) -> Float[np.ndarray, " b"]:
        """The size at which the error falls to ``error``; inf if it never does."""
        z = self.law.invert(self.theta[None] if theta is None else theta, error)
        with np.errstate(over="ignore"):
            return np.exp(z + self.log_x0)

    def natural(self, theta: Float[np.ndarray, "b p"] | None = None) -> dict[str, Float[np.ndarray, " b"]]:
        return self.law.natural(self.theta[None] if theta is None else theta, self.log_x0)


def fit(law: Law, curve: Curve) -> LawFit:
    """Fit a law to the points of a curve that are not held out.

    The loss is the soft L1 of residuals of the log error. Its scale is three robust standard deviations (MAD / 0.6745)
    of a first fit's residuals.

    Raises:
      UserError: fewer different sizes than the law has parameters.
    """
    curve = curve.train
    if curve.sizes < len(law.parameters):
        raise UserError(f"{law.name} has {len(law.parameters)} parameters, the curve {curve.sizes} different sizes; "
                        "add sizes, or choose a law with fewer parameters")
    log_x0 = float(np.log(curve.x).mean())
    z, log_error = np.log(curve.x) - log_x0, np.log(curve.error)
    weights = seed_weights(curve)
    bounds = law.bounds(z, curve.error)
    floor = FLOOR * float(curve.error.min())
    starts = np.clip(law.starts(z, curve.error), *bounds)
    problem = (law, z, log_error, bounds, floor)
    theta, cost = _solve(*problem, starts, np.tile(weights, (len(starts), 1)), 0.1, steps=12)
    best = theta[np.argsort(cost, kind="stable")[:4]]
    delta = 0.1
    for steps in (60, 200):
        theta, cost = _solve(*problem, best, np.tile(weights, (len(best), 1)), delta, steps=steps)
        best = theta[np.argsort(cost, kind="stable")[:2]]
        residuals = _residuals(law, best[:1], z, log_error, floor)[0][0]
        delta = max(3 * float(np.median(np.abs(residuals))) / 0.6745, 1e-4)
    rmse = float(np.sqrt(np.mean(residuals**2)))
    return LawFit(law, best[0], log_x0, delta, floor, rmse)


def seed_weights(curve: Curve) -> Float[np.ndarray, " n"]:
    """Inverse variance of each point's log error over seeds of the same size, normalized to mean 1.

    The variance of a few seeds is itself uncertain, so each is shrunk towards the one pooled over sizes. Without
    repeated sizes all weights are 1.
    """
    _, at, count = np.unique(curve.x, return_inverse=True, return_counts=True)
    log_error = np.log(curve.error)
    mean = np.bincount(at, log_error) / count
    square = np.bincount(at, (log_error - mean[at])**2)
    freedom = count - 1
    pooled = square.sum() / max(freedom.sum(), 1)
    if pooled <= 0:
        return np.ones(curve.x.size)
    weights = 1 / ((square + PRIOR * pooled) / (freedom + PRIOR))[at]
    return weights / weights.mean()


def bootstrap(fitted: LawFit, curve: Curve, samples: int = 200, seed: int = 0) -> Float[np.ndarray, "samples p"]:
    """Parameters of fits to resampled curves: seeds are drawn first, then points of each seed, both with replacement.

    Each fit starts from the full one. A sample with fewer different sizes than parameters is redrawn.

    Raises:
      UserError: 100 redraws did not give a sample.
    """
    curve = curve.train
    rng = np.random.default_rng(seed)
    z = np.log(curve.x) - fitted.log_x0
    counts = np.stack([_resample(curve, len(fitted.law.parameters), rng) for _ in range(samples)])
    start = np.tile(fitted.theta, (samples, 1))
    theta, _ = _solve(fitted.law, z, np.log(curve.error), fitted.law.bounds(z, curve.error), fitted.floor, start,
                      counts * seed_weights(curve), fitted.delta, steps=100)
    return theta


def _resample(curve: Curve, parameters: int, rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    """How often each point is in a bootstrap sample."""
    by_seed = [np.flatnonzero(curve.seed == s) for s in np.unique(curve.seed)]
    for _ in range(100):
        counts = np.zeros(curve.x.size)
        for which in rng.integers(len(by_seed), size=len(by_seed)):
            np.add.at(counts, rng.choice(by_seed[which], size=by_seed[which].size), 1)
        if np.unique(curve.x[counts > 0]).size >= parameters:
            return counts
    raise UserError(f"{curve.x.size} points are too few to resample for a law of {parameters} parameters; add seeds")


def interval(values: Float[np.ndarray, " samples"], points: int, parameters: int) -> tuple[float, float]:
    """Expanded percentile interval (95 %) of bootstrap samples (Hesterberg 2015, section 4): the quantiles are widened
    as by Student's t with the fit's degrees of freedom, because samples of few points vary too little."""
    from scipy import stats

    freedom = max(points - parameters, 1)
    tail = stats.norm.cdf(-np.sqrt(points / freedom) * stats.t.ppf(0.975, freedom))
    ordered = np.sort(values)
    low, high = (float(ordered[round(q * (len(ordered) - 1))]) for q in (tail, 1 - tail))
    return low, high


def _residuals(law: Law, theta: np.ndarray, z: np.ndarray, log_error: np.ndarray, floor: float):
    error, slopes = law.predict(theta, z)
    clipped = np.maximum(error, floor)
    return np.log(clipped) - log_error, slopes / clipped[..., None]


def _cost(residuals: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    return (weights * delta**2 * 2 * (np.sqrt(1 + (residuals / delta)**2) - 1)).sum(axis=1)


def _solve(law: Law, z: np.ndarray, log_error: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], floor: float,
           theta: np.ndarray, weights: np.ndarray, delta: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Run a batch of fits to convergence or for ``steps``; returns theta ``[b, p]`` and costs ``[b]``."""
    low, high = bounds
    theta = np.clip(theta, low, high)
    residuals, slopes = _residuals(law, theta, z, log_error, floor)
    cost = _cost(residuals, weights, delta)
    damping = np.full(len(theta), 1e-2)
    active = np.arange(len(theta))
    eye = np.eye(theta.shape[1])
    for _ in range(steps):
        r, j, w, current = residuals[active], slopes[active], weights[active], theta[active]
        # Soft L1 as reweighted least squares.
        w = w / np.sqrt(1 + (r / delta)**2)
        gradient = np.einsum("bnp,bn->bp", j, w * r)
        fixed = ((current <= low) & (gradient > 0)) | ((current >= high) & (gradient < 0))
        j = np.where(fixed[:, None], 0.0, j)
        gradient = np.where(fixed, 0.0, gradient)
        normal = np.swapaxes(j * w[..., None], 1, 2) @ j
        size = np.einsum("bpp->bp", normal)
        size = damping[active, None] * size + 1e-12 * size.max(axis=1, keepdims=True) + 1e-300
        normal = normal + eye * size[:, None]
        step = np.linalg.solve(normal, -gradient[..., None])[..., 0]
        tried = np.clip(current + step, low, high)
        new_residuals, new_slopes = _residuals(law, tried, z, log_error, floor)
        new_cost = _cost(new_residuals, weights[active], delta)
        better = new_cost < cost[active]
        done = ((better & (cost[active] - new_cost <= 1e-10 * cost[active] + 1e-300))
                | (~better & (damping[active] > 1e8)) | (np.abs(gradient).max(axis=1) <= 1e-14))
        at = active[better]
        theta[at], residuals[at], slopes[at] = tried[better], new_residuals[better], new_slopes[better]
        cost[at] = new_cost[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 6)
        active = active[~done]
        if not active.size:
            break
    return theta, cost
