"""What a law of error against data is, and the arithmetic that all of them share.

Laws work on z = ln(x / x0), where x0 is the geometric mean of a curve's sizes: scale and exponent are then nearly
uncorrelated, which makes fits converge. `Law.natural` converts the parameters to those of the papers.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import numpy as np
from jaxtyping import Float

SMALL = 1e-12
MAX_EXPONENT = 10.0


class Law(abc.ABC):
    """A family of curves that never rise. Each row of ``theta`` is a fit; all methods work on many at once."""

    name: ClassVar[str]
    formula: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    """Names of theta's columns, as in `natural`. ``c`` is always the exponent."""

    @abc.abstractmethod
    def predict(self, theta: Float[np.ndarray, "b p"], z: Float[np.ndarray, "#b n"]
                ) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b n p"]]:
        """Errors and their derivatives with respect to theta. ``z`` may have no first axis."""

    @abc.abstractmethod
    def bounds(self, z: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]
               ) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """Lowest and highest sensible theta for a curve."""

    @abc.abstractmethod
    def starts(self, z: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]) -> Float[np.ndarray, "s p"]:
        """Starting points of a fit."""

    @abc.abstractmethod
    def natural(self, theta: Float[np.ndarray, "b p"], log_x0: float) -> dict[str, Float[np.ndarray, " b"]]:
        """Parameters of the formula, in terms of x."""


def line(z: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Level at z = 0 and slope of a straight line by weighted least squares."""
    weights = np.ones_like(z) if weights is None else weights
    centre = np.average(z, weights=weights)
    mean = np.average(y, weights=weights)
    spread = np.average((z - centre)**2, weights=weights)
    slope = np.average((z - centre) * (y - mean), weights=weights) / max(spread, SMALL)
    return float(mean - slope * centre), float(slope)


def clip(exponent: np.ndarray) -> np.ndarray:
    return np.clip(exponent, -500, 500)


def softplus(t: np.ndarray) -> np.ndarray:
    """ln(1 + exp(t)), which is -ln(sigmoid(-t))."""
    return np.logaddexp(0.0, t)


def sigmoid(t: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-clip(t)))
