"""Laws of error against data size: each predicts the error at a size, and the size at which an error is reached.

M1 to M4 are those of Alabdulmohsin, Neyshabur and Zhai, "Revisiting Neural Scaling Laws in Language and Vision" (2022);
the log-linear law is that of Sun et al. (2017); the law of downstream against upstream error is that of Abnar et al.,
"Exploring the Limits of Large Scale Pre-training" (2021).

Laws work on z = ln(x / x0), where x0 is the geometric mean of a curve's sizes: scale and exponent are then nearly
uncorrelated, which makes fits converge. `Law.natural` converts the parameters to those of the papers.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from typing import ClassVar

import numpy as np
from jaxtyping import Float

SMALL = 1e-12
MAX_EXPONENT = 10.0


class Law(abc.ABC):
    """A family of curves. Each row of ``theta`` is a fit; all methods work on many at once."""

    name: ClassVar[str]
    formula: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    """Names of theta's columns, as in `natural`. ``c`` is always the exponent."""

    @abc.abstractmethod
    def predict(self, theta: Float[np.ndarray, "b p"], z: Float[np.ndarray, " n"]
                ) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b n p"]]:
        """Errors and their derivatives with respect to theta."""

    @abc.abstractmethod
    def invert(self, theta: Float[np.ndarray, "b p"], error: float) -> Float[np.ndarray, " b"]:
        """The z at which the error falls to ``error``: inf if it never does, -inf if it is always below."""

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


@dataclasses.dataclass(frozen=True)
class LogLinear(Law):
    """Each tenfold of data lowers the error by the same amount: Sun et al. (2017), section 5."""

    name = "log-linear"
    formula = "e = a - b log10(x)"
    parameters = ("a", "b")

    def predict(self, theta, z):
        error = theta[:, :1] - theta[:, 1:2] * z
        slopes = np.stack([np.ones_like(error), np.broadcast_to(-z, error.shape)], axis=-1)
        return error, slopes

    def invert(self, theta, error):
        return _divide(theta[:, 0] - error, theta[:, 1])

    def bounds(self, z, error):
        return np.array([0.0, 0.0]), np.array([10 * error.max(), 10 * error.max()])

    def starts(self, z, error):
        level, slope = _line(z, error, 1 / error**2)
        return np.array([[level, max(-slope, SMALL)]])

    def natural(self, theta, log_x0):
        a, b = theta.T
        return {"a": a + b * log_x0, "b": b * np.log(10)}


@dataclasses.dataclass(frozen=True)
class Power(Law):
    """M1.

    >>> theta = np.array([[np.log(0.5), 0.2]])  # an error of 0.5 at x0, and the exponent -0.2
    >>> errors, _ = Power().predict(theta, np.log([1.0, 10.0, 100.0]))
    >>> errors.round(3).tolist()
    [[0.5, 0.315, 0.199]]
    >>> np.exp(Power().invert(theta, 0.25)).round(2).tolist()  # half the error takes 2^5 times the data
    [32.0]
    """

    name = "power (M1)"
    formula = "e = beta x^c"
    parameters = ("beta", "c")

    def predict(self, theta, z):
        error = np.exp(_clip(theta[:, :1] - theta[:, 1:2] * z))
        return error, np.stack([error, -z * error], axis=-1)

    def invert(self, theta, error):
        return _divide(theta[:, 0] - _log(error), theta[:, 1])

    def bounds(self, z, error):
        level = np.log(error).mean()
        return np.array([level - 20, 0.0]), np.array([level + 20, MAX_EXPONENT])

    def starts(self, z, error):
        level, slope = _line(z, np.log(error))
        return np.array([[level, max(-slope, 1e-3)]])

    def natural(self, theta, log_x0):
        return {"beta": np.exp(_clip(theta[:, 0] + theta[:, 1] * log_x0)), "c": -theta[:, 1]}


@dataclasses.dataclass(frozen=True)
class Asymptote(Law):
    """M2: a power law above an irreducible error."""

    name = "asymptote (M2)"
    formula = "e = e_inf + beta x^c"
    parameters = ("beta", "c", "e_inf")

    def predict(self, theta, z):
        falling = np.exp(_clip(theta[:, :1] - theta[:, 1:2] * z))
        return theta[:, 2:] + falling, np.stack([falling, -z * falling, np.ones_like(falling)], axis=-1)

    def invert(self, theta, error):
        return _divide(theta[:, 0] - _log(error - theta[:, 2]), theta[:, 1])

    def bounds(self, z, error):
        low, high = Power().bounds(z, error)
        # Noise pushes some errors below the asymptote: a bound at the lowest would bias e_inf down.
        return np.append(low, 0.0), np.append(high, np.median(error))

    def starts(self, z, error):
        starts = []
        for share in (0.0, 0.3, 0.6, 0.8, 0.95):
            e_inf = share * error.min()
            level, slope = _line(z, np.log(error - e_inf), (error - e_inf)**2)
            starts.append((level, max(-slope, 1e-3), e_inf))
        return np.array(starts)

    def natural(self, theta, log_x0):
        return {**Power().natural(theta[:, :2], log_x0), "e_inf": theta[:, 2]}


@dataclasses.dataclass(frozen=True)
class Shifted(Law):
    """M3: a power law of 1/x that levels off at 1/x = gamma."""

    name = "shifted (M3)"
    formula = "e = beta (1/x + gamma)^-c"
    parameters = ("beta", "c", "gamma")

    def predict(self, theta, z):
        gamma = np.exp(theta[:, 2:])
        inner = np.exp(-z) + gamma
        error = np.exp(_clip(theta[:, :1] + theta[:, 1:2] * np.log(inner)))
        return error, np.stack([error, error * np.log(inner), error * theta[:, 1:2] * gamma / inner], axis=-1)

    def invert(self, theta, error):
        inner = np.exp(_clip((_log(error) - theta[:, 0]) / np.maximum(theta[:, 1], SMALL)))
        return -_log(inner - np.exp(theta[:, 2]))

    def bounds(self, z, error):
        level = np.log(error).mean()
        return np.array([level - 20, 0.0, -z.max() - 15]), np.array([level + 20, MAX_EXPONENT, -z.min()])

    def starts(self, z, error):
        starts = []
        for log_gamma in (-z.max() - 12, -z.max() - 2, -z.max(), -0.5 * z.max()):
            level, slope = _line(np.log(np.exp(-z) + np.exp(log_gamma)), np.log(error))
            starts.append((level, max(slope, 1e-3), log_gamma))
        return np.array(starts)

    def natural(self, theta, log_x0):
        beta = np.exp(_clip(theta[:, 0] + theta[:, 1] * log_x0))
        return {"beta": beta, "c": -theta[:, 1], "gamma": np.exp(theta[:, 2] - log_x0)}


@dataclasses.dataclass(frozen=True)
class Sigmoid(Law):
    """M4: from the chance-level error e0 over a power law to an asymptote.

    With s = (e - e_inf) / (e0 - e_inf) = sigmoid(t), the law is ln(s) - alpha ln(1 - s) = y, an increasing function
    of t that Newton's method inverts; derivatives follow implicitly.
    """

    name = "sigmoid (M4)"
    formula = "(e - e_inf) / (e0 - e)^alpha = beta x^c"
    parameters = ("beta", "c", "e_inf", "alpha", "e0")

    def predict(self, theta, z):
        level, steep, e_inf, alpha, e0 = (theta[:, i:i + 1] for i in range(5))
        width = np.maximum(e0 - e_inf, SMALL)
        y = level - steep * z - (1 - alpha) * np.log(width)
        t = np.where(y < 0, y, y / alpha)
        for _ in range(50):
            s = 1 / (1 + np.exp(-_clip(t)))
            gap = _softplus_negative(-t) * alpha - _softplus_negative(t) - y
            step = gap / (1 - s + alpha * s)
            t = t - step
            if np.abs(step).max() < 1e-10 * (1 + np.abs(t).max()):
                break
        s = 1 / (1 + np.exp(-_clip(t)))
        by_y = width * s * (1 - s) / (1 - s + alpha * s)
        by_width = -(1 - alpha) / width * by_y
        by_alpha = (np.log(width) - _softplus_negative(-t)) * by_y
        slopes = [by_y, -z * by_y, 1 - s - by_width, by_alpha, s + by_width]
        return e_inf + width * s, np.stack(slopes, axis=-1)

    def invert(self, theta, error):
        level, steep, e_inf, alpha, e0 = theta.T
        with np.errstate(invalid="ignore"):
            z = _divide(level - _log(error - e_inf) + alpha * _log(e0 - error), steep)
        return np.where(error >= e0, -np.inf, np.where(error <= e_inf, np.inf, z))

    def bounds(self, z, error):
        low, high = Asymptote().bounds(z, error)
        # As for e_inf: noise lifts errors near chance level above e0. No error rate exceeds 1, but a loss may.
        max_e0 = 1.0 if error.max() <= 1 else 10 * error.max()
        return np.append(low, [0.01, np.median(error)]), np.append(high, [10.0, max_e0])

    def starts(self, z, error):
        highest = self.bounds(z, error)[1][4]
        starts = []
        for share, alpha, towards in itertools.product((0.0, 0.5, 0.9), (0.1, 0.5, 1.0, 3.0), (0.1, 0.9)):
            e_inf = share * error.min()
            e0 = error.max() + towards * (highest - error.max())
            level, slope = _line(z, np.log(error - e_inf) - alpha * np.log(e0 - error + 1e-9))
            starts.append((level, max(-slope, 1e-3), e_inf, alpha, e0))
        return np.array(starts)

    def natural(self, theta, log_x0):
        return {**Asymptote().natural(theta[:, :3], log_x0), "alpha": theta[:, 3], "e0": theta[:, 4]}


@dataclasses.dataclass(frozen=True)
class SigmoidFrom(Law):
    """M4 with a known chance-level error: one parameter less, so fewer sizes suffice."""

    name = "sigmoid from chance (M4)"
    formula = "(e - e_inf) / (e0 - e)^alpha = beta x^c, e0 given"
    parameters = ("beta", "c", "e_inf", "alpha")

    e0: float

    def _with_e0(self, theta):
        return np.append(theta, np.full((len(theta), 1), self.e0), axis=1)

    def predict(self, theta, z):
        error, slopes = Sigmoid().predict(self._with_e0(theta), z)
        return error, slopes[..., :4]

    def invert(self, theta, error):
        return Sigmoid().invert(self._with_e0(theta), error)

    def bounds(self, z, error):
        low, high = Sigmoid().bounds(z, error)
        high[2] = min(high[2], 0.999 * self.e0)
        return low[:4], high[:4]

    def starts(self, z, error):
        starts = []
        for share, alpha in itertools.product((0.0, 0.5, 0.9), (0.1, 0.5, 1.0, 3.0)):
            e_inf = share * min(error.min(), self.e0)
            gap = np.maximum(self.e0 - error, 1e-3 * self.e0)
            level, slope = _line(z, np.log(error - e_inf) - alpha * np.log(gap))
            starts.append((level, max(-slope, 1e-3), e_inf, alpha))
        return np.array(starts)

    def natural(self, theta, log_x0):
        return {**Asymptote().natural(theta[:, :3], log_x0), "alpha": theta[:, 3]}


@dataclasses.dataclass(frozen=True)
class Downstream(Asymptote):
    """Downstream error against upstream error, fitted to the lower convex hull of runs: Abnar et al. (2021), eq. 1."""

    name = "downstream (Abnar)"
    formula = "e_DS = e_IR + k e_US^alpha"
    parameters = ("k", "alpha", "e_IR")

    def predict(self, theta, z):
        return super().predict(theta, -z)

    def invert(self, theta, error):
        return -super().invert(theta, error)

    def starts(self, z, error):
        return super().starts(-z, error)

    def natural(self, theta, log_x0):
        return {"k": np.exp(_clip(theta[:, 0] - theta[:, 1] * log_x0)), "alpha": theta[:, 1], "e_IR": theta[:, 2]}


LAWS: tuple[Law, ...] = (LogLinear(), Power(), Asymptote(), Shifted(), Sigmoid())


def laws(chance: float | None = None) -> tuple[Law, ...]:
    """All laws of error against data, simplest first; with ``chance``, also M4 from that chance-level error."""
    return LAWS if chance is None else (*LAWS[:-1], SigmoidFrom(chance), LAWS[-1])


def _line(z: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Level at z = 0 and slope of a straight line by weighted least squares."""
    weights = np.ones_like(z) if weights is None else weights
    centre = np.average(z, weights=weights)
    mean = np.average(y, weights=weights)
    spread = np.average((z - centre)**2, weights=weights)
    slope = np.average((z - centre) * (y - mean), weights=weights) / max(spread, SMALL)
    return float(mean - slope * centre), float(slope)


def _clip(exponent: np.ndarray) -> np.ndarray:
    return np.clip(exponent, -500, 500)


def _softplus_negative(t: np.ndarray) -> np.ndarray:
    """ln(1 + exp(-t)), which is -ln(sigmoid(t))."""
    return np.logaddexp(0.0, -t)


def _log(value):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(value) > 0, np.log(np.maximum(value, 1e-300)), -np.inf)


def _divide(gap: np.ndarray, steep: np.ndarray) -> np.ndarray:
    """z = gap / steep; a flat curve is either always or never below."""
    return np.where(steep > SMALL, gap / np.maximum(steep, SMALL), np.where(gap > 0, np.inf, -np.inf))
