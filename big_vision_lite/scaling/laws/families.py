"""Laws of error against data size from the literature: each predicts the error at a size.

M1 to M4 are those of Alabdulmohsin, Neyshabur and Zhai, "Revisiting Neural Scaling Laws in Language and Vision" (2022);
the log-linear law is that of Sun et al. (2017); the broken law is in `broken`; the law of downstream against upstream
error is that of Abnar et al., "Exploring the Limits of Large Scale Pre-training" (2021).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from big_vision_lite.scaling.laws.broken import Broken
from big_vision_lite.scaling.laws.law import MAX_EXPONENT, SMALL, Law, clip, line, sigmoid, softplus


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

    def bounds(self, z, error):
        return np.array([0.0, 0.0]), np.array([10 * error.max(), 10 * error.max()])

    def starts(self, z, error):
        level, slope = line(z, error, 1 / error**2)
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
    """

    name = "power (M1)"
    formula = "e = beta x^c"
    parameters = ("beta", "c")

    def predict(self, theta, z):
        error = np.exp(clip(theta[:, :1] - theta[:, 1:2] * z))
        return error, np.stack([error, -z * error], axis=-1)

    def bounds(self, z, error):
        level = np.log(error).mean()
        return np.array([level - 20, 0.0]), np.array([level + 20, MAX_EXPONENT])

    def starts(self, z, error):
        level, slope = line(z, np.log(error))
        return np.array([[level, max(-slope, 1e-3)]])

    def natural(self, theta, log_x0):
        return {"beta": np.exp(clip(theta[:, 0] + theta[:, 1] * log_x0)), "c": -theta[:, 1]}


@dataclasses.dataclass(frozen=True)
class Asymptote(Law):
    """M2: a power law above an irreducible error."""

    name = "asymptote (M2)"
    formula = "e = e_inf + beta x^c"
    parameters = ("beta", "c", "e_inf")

    def predict(self, theta, z):
        falling = np.exp(clip(theta[:, :1] - theta[:, 1:2] * z))
        return theta[:, 2:] + falling, np.stack([falling, -z * falling, np.ones_like(falling)], axis=-1)

    def bounds(self, z, error):
        low, high = Power().bounds(z, error)
        # Noise pushes some errors below the asymptote: a bound at the lowest would bias e_inf down.
        return np.append(low, 0.0), np.append(high, np.median(error))

    def starts(self, z, error):
        starts = []
        for share in (0.0, 0.3, 0.6, 0.8, 0.95):
            e_inf = share * error.min()
            level, slope = line(z, np.log(error - e_inf), (error - e_inf)**2)
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
        error = np.exp(clip(theta[:, :1] + theta[:, 1:2] * np.log(inner)))
        return error, np.stack([error, error * np.log(inner), error * theta[:, 1:2] * gamma / inner], axis=-1)

    def bounds(self, z, error):
        level = np.log(error).mean()
        return np.array([level - 20, 0.0, -z.max() - 15]), np.array([level + 20, MAX_EXPONENT, -z.min()])

    def starts(self, z, error):
        starts = []
        for log_gamma in (-z.max() - 12, -z.max() - 2, -z.max(), -0.5 * z.max()):
            level, slope = line(np.log(np.exp(-z) + np.exp(log_gamma)), np.log(error))
            starts.append((level, max(slope, 1e-3), log_gamma))
        return np.array(starts)

    def natural(self, theta, log_x0):
        beta = np.exp(clip(theta[:, 0] + theta[:, 1] * log_x0))
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
            s = sigmoid(t)
            gap = softplus(t) * alpha - softplus(-t) - y
            step = gap / (1 - s + alpha * s)
            t = t - step
            if np.abs(step).max() < 1e-10 * (1 + np.abs(t).max()):
                break
        s = sigmoid(t)
        by_y = width * s * (1 - s) / (1 - s + alpha * s)
        by_width = -(1 - alpha) / width * by_y
        by_alpha = (np.log(width) - softplus(t)) * by_y
        slopes = [by_y, -z * by_y, 1 - s - by_width, by_alpha, s + by_width]
        return e_inf + width * s, np.stack(slopes, axis=-1)

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
            level, slope = line(z, np.log(error - e_inf) - alpha * np.log(e0 - error + 1e-9))
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

    def bounds(self, z, error):
        low, high = Sigmoid().bounds(z, error)
        high[2] = min(high[2], 0.999 * self.e0)
        return low[:4], high[:4]

    def starts(self, z, error):
        starts = []
        for share, alpha in itertools.product((0.0, 0.5, 0.9), (0.1, 0.5, 1.0, 3.0)):
            e_inf = share * min(error.min(), self.e0)
            gap = np.maximum(self.e0 - error, 1e-3 * self.e0)
            level, slope = line(z, np.log(error - e_inf) - alpha * np.log(gap))
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

    def starts(self, z, error):
        return super().starts(-z, error)

    def natural(self, theta, log_x0):
        return {"k": np.exp(clip(theta[:, 0] - theta[:, 1] * log_x0)), "alpha": theta[:, 1], "e_IR": theta[:, 2]}


LAWS: tuple[Law, ...] = (LogLinear(), Power(), Asymptote(), Shifted(), Sigmoid(), Broken(1), Broken(2))


def laws(chance: float | None = None) -> tuple[Law, ...]:
    """All laws of error against data, simplest first; with ``chance``, M4 from that chance-level error."""
    return tuple(SigmoidFrom(chance) if isinstance(law, Sigmoid) and chance is not None else law for law in LAWS)
