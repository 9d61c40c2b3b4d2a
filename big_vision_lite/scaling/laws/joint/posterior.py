"""Fits forms to cells and draws from what might be as well, given their noise and what is expected of parameters.

Each form is fitted to copies of the cells that noise might have given too, with what is expected of its parameters
drawn anew each time (randomise, then optimise: Bardsley et al. 2014). Forms count alike, but those that fit far worse
than the best are ruled out.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from big_vision_lite.scaling.laws import least_squares
from big_vision_lite.scaling.laws.noise import DEPARTURE
from big_vision_lite.scaling.laws.prediction import LEVELS, Range, interval

OUTLIER = 3.0
"""Residuals beyond this many standard deviations count as outliers."""
RULED_OUT = 9.0
"""A form is ruled out if its sum of squared residuals exceeds the best one's by this much, in variances of a point:
three standard deviations."""


class Parameter(NamedTuple):
    """Limits of a parameter, and what is expected of it before any run: a normal distribution, which counts as one more
    point. ``log``: theta is its logarithm."""

    name: str
    low: float
    high: float
    mean: float
    spread: float
    starts: tuple[float, ...]
    log: bool = True


def positive(name: str, low: float, high: float, mean: float, factor: float, starts: tuple[float, ...]) -> Parameter:
    """A parameter above 0, expected within a factor of its mean."""
    return Parameter(name, np.log(low), np.log(high), np.log(mean), np.log(factor), tuple(map(np.log, starts)))


@runtime_checkable
class Form(Protocol):
    """A law whose logarithm of the error is a function of parameters and of where it is asked."""

    @property
    def name(self) -> str:
        ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Of theta's columns."""
        ...

    def predict(self, theta: Float[np.ndarray, "b p"], at: Any
                ) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b n p"]]:
        """Logarithms of the error, and their derivatives with respect to theta."""
        ...


@dataclasses.dataclass(frozen=True)
class FormFit:
    """A form fitted to cells."""

    form: Any
    """A `Form`."""
    theta: Float[np.ndarray, " p"]
    misfit: float
    """Sum of squared residuals, robust, in standard deviations."""
    rmse: float
    """Of the log error, over the fitted cells."""
    samples: Float[np.ndarray, "samples p"] | None = None
    """Of fits to perturbed cells; None where the form was ruled out."""


def natural(form: Form, theta: Float[np.ndarray, "b p"]) -> dict[str, Float[np.ndarray, " b"]]:
    """Parameters by name. Amplitudes are errors at the reference."""
    return {parameter.name: np.exp(theta[:, i]) if parameter.log else theta[:, i]
            for i, parameter in enumerate(form.parameters)}


def to_range(values: Float[np.ndarray, " m"]) -> Range:
    """The median of samples and its intervals."""
    return Range(float(np.median(values)), tuple(interval(values, level) for level in LEVELS))


def describe(value: Range) -> str:
    """Such as "0.38, 95 % interval 0.31 to 0.44"."""
    low, high = value.intervals[-1]
    return f"{value.median:.3g}, 95 % interval {low:.3g} to {high:.3g}"


def fit_forms(forms: Sequence[Form], at: Any, log_error: Float[np.ndarray, " n"],
              standard_error: Float[np.ndarray, " n"], samples: int, rng: np.random.Generator) -> tuple[FormFit, ...]:
    """Fit forms to log errors, best first.

    As for laws of one variable, a form may depart from a cell by `noise.DEPARTURE` of the change of the log error up to
    the lowest, so that the best cells count most.

    Args:
      standard_error: of the log errors.
      samples: fits per form that is not ruled out.
    """
    departure = DEPARTURE * (log_error - log_error.min())
    sigma = np.hypot(standard_error, departure)
    fitted = sorted((_best(form, at, log_error, sigma) for form in forms), key=lambda one: one.misfit)
    # Where even the best form misses by more than noise, forms are approximations of that quality.
    freedom = max(log_error.size - len(fitted[0].theta), 1)
    inflation = max(1.0, fitted[0].misfit / freedom)
    scale = np.sqrt(inflation)
    fits = []
    for one in fitted:
        if (one.misfit - fitted[0].misfit) / inflation <= RULED_OUT:
            copies = log_error + scale * (rng.standard_normal((samples, log_error.size)) * standard_error
                                          + rng.standard_normal((samples, 1)) * departure)
            one = dataclasses.replace(one, samples=_resample(one, at, copies, scale * sigma, rng))
        fits.append(one)
    return tuple(fits)


def _bounds(form: Form) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.array(limits) for limits in zip(*((p.low, p.high) for p in form.parameters), strict=True))
    return low, high


def _starts(form: Form, at: Any, log_error: np.ndarray) -> np.ndarray:
    """All combinations of the parameters' starts, with amplitudes at which the errors are right on average."""
    parameters = form.parameters
    theta = np.array(list(itertools.product(*(parameter.starts for parameter in parameters))))
    amplitudes = [i for i, parameter in enumerate(parameters) if parameter.name in "AB"]
    low, high = _bounds(form)
    for _ in range(5):
        gap = (log_error - form.predict(theta, at)[0]).mean(axis=1, keepdims=True)
        theta[:, amplitudes] = np.clip(theta[:, amplitudes] + 1.5 * gap, low[amplitudes], high[amplitudes])
    return theta


def _best(form: Form, at: Any, log_error: np.ndarray, sigma: np.ndarray) -> FormFit:
    """The best of fits from many starts."""
    theta = _starts(form, at, log_error)
    prior = np.array([parameter.mean for parameter in form.parameters])
    cost = np.zeros(len(theta))
    for steps, kept in ((8, 6), (40, 2), (150, 1)):
        theta, cost = _solve(form, at, np.tile(log_error, (len(theta), 1)), sigma, np.tile(prior, (len(theta), 1)),
                             theta, steps)
        theta = theta[np.argsort(cost, kind="stable")[:kept]]
    residuals = form.predict(theta, at)[0][0] - log_error
    return FormFit(form, theta[0], float(cost.min()), float(np.sqrt(np.mean(residuals**2))))


def _resample(one: FormFit, at: Any, copies: np.ndarray, sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parameters = one.form.parameters
    prior = (np.array([parameter.mean for parameter in parameters])
             + rng.standard_normal((len(copies), len(parameters))) * [parameter.spread for parameter in parameters])
    return _solve(one.form, at, copies, sigma, prior, np.tile(one.theta, (len(copies), 1)), 40)[0]


def _solve(form: Form, at: Any, log_errors: np.ndarray, sigma: np.ndarray, prior: np.ndarray, theta: np.ndarray,
           steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Fits to each row of log errors, with a residual for each cell and one for each parameter's prior."""
    spread = np.array([parameter.spread for parameter in form.parameters])
    pull = np.diag(1 / spread)

    def residuals(tried, fits):
        log_error, slopes = form.predict(tried, at)
        return (np.concatenate([(log_error - log_errors[fits]) / sigma, (tried - prior[fits]) / spread], axis=1),
                np.concatenate([slopes / sigma[:, None], np.broadcast_to(pull, (len(tried), *pull.shape))], axis=1))

    weights = np.ones((len(theta), sigma.size + spread.size))
    return least_squares.solve(residuals, _bounds(form), theta, weights, OUTLIER, steps)
