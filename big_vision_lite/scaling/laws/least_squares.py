"""Robust, bounded least squares for a batch of fits: Levenberg-Marquardt with steps clipped to the bounds.

scipy's solver runs one fit at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

Residuals = Callable[[Float[np.ndarray, "b p"], Int[np.ndarray, " b"]],
                     tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b n p"]]]
"""From parameters and the numbers of their fits in the batch to residuals and their derivatives."""


def solve(residuals_of: Residuals, bounds: tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]],
          theta: Float[np.ndarray, "b p"], weights: Float[np.ndarray, "b n"], delta: float, steps: int
          ) -> tuple[Float[np.ndarray, "b p"], Float[np.ndarray, " b"]]:
    """Run a batch of fits to convergence or for ``steps``; returns their parameters and costs.

    Args:
      theta: starting points, one per fit.
      delta: residual beyond which the loss, soft L1, turns from quadratic to linear.
    """
    low, high = bounds
    theta = np.clip(theta, low, high)
    residuals, slopes = residuals_of(theta, np.arange(len(theta)))
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
        new_residuals, new_slopes = residuals_of(tried, active)
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


def _cost(residuals: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    return (weights * delta**2 * 2 * (np.sqrt(1 + (residuals / delta)**2) - 1)).sum(axis=1)
