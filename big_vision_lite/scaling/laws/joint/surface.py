"""Fits all forms of the joint law to cells, and predicts errors elsewhere, as `laws.prediction` does for one variable.

Each form is fitted to copies of the cells that noise might have given as well, with what is expected of its parameters
drawn anew each time (randomise, then optimise: Bardsley et al. 2014). Forms count alike, but those that fit far worse
than the best are left out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws import least_squares
from big_vision_lite.scaling.laws.joint.cells import Cells
from big_vision_lite.scaling.laws.joint.forms import At, Form, forms
from big_vision_lite.scaling.laws.noise import DEPARTURE
from big_vision_lite.scaling.laws.prediction import BEND, BEND_FREEDOM, LEVELS, SAMPLES, Range, interval

OUTLIER = 3.0
"""Residuals beyond this many standard deviations count as outliers."""
RULED_OUT = 9.0
"""A form is left out if its sum of squared residuals exceeds the best one's by this much, in variances of a point:
three standard deviations."""
FEWEST_CELLS = 6


@dataclasses.dataclass(frozen=True)
class FormFit:
    """A form fitted to cells."""

    form: Form
    theta: Float[np.ndarray, " p"]
    misfit: float
    """Sum of squared residuals, robust, in standard deviations."""
    rmse: float
    """Of the log error, over the fitted cells."""
    samples: Float[np.ndarray, "samples p"] | None = None
    """Of fits to perturbed cells; None where the form was ruled out."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Where logarithms are 0, and the kinds of noise."""

    images: float
    operations: float
    kinds: tuple[str, ...]

    def at(self, images, seen, operations, noise, kind: Sequence[str]) -> At:
        numbers = [self.kinds.index(name) if name in self.kinds else 0 for name in kind]
        return At(np.log(images) - self.images, np.log(seen) - self.images, np.log(operations) - self.operations,
                  np.log1p(-np.asarray(noise, float)), np.array(numbers, int))

    def of(self, cells: Cells) -> At:
        return self.at(cells.images, cells.seen, cells.operations, cells.noise, cells.kind)


@dataclasses.dataclass(frozen=True)
class JointLaw:
    """All forms fitted to cells, as a distribution of surfaces."""

    cells: Cells
    """The fitted ones."""
    chance: float | None
    reference: Reference
    fits: tuple[FormFit, ...]
    """Of all forms, best first."""
    bends: Float[np.ndarray, " m"]

    @property
    def plausible(self) -> tuple[FormFit, ...]:
        """The forms that are not ruled out."""
        return tuple(fit for fit in self.fits if fit.samples is not None)

    def sampled(self, images, seen, operations, noise=0.0, kind: Sequence[str] | str = "") -> Float[np.ndarray, "m n"]:
        """Log errors of all samples at points; arguments are broadcast. Beyond the fitted cells, what the error falls
        is multiplied by each sample's bend."""
        images, seen, operations, noise = np.broadcast_arrays(*(np.atleast_1d(np.asarray(values, float))
                                                                for values in (images, seen, operations, noise)))
        kinds = [kind] * images.size if isinstance(kind, str) else kind
        logs = self._logs(self.reference.at(images, seen, operations, noise, kinds))
        inside = [np.clip(values, own.min(), own.max()) for values, own in (
            (images, self.cells.images), (seen, self.cells.seen), (operations, self.cells.operations))]
        edge = self._logs(self.reference.at(*inside, noise, kinds))
        bent = edge + (logs - edge) * self.bends[:, None]
        return bent if self.chance is None else np.minimum(bent, np.log(self.chance))

    def _logs(self, at: At) -> Float[np.ndarray, "m n"]:
        return np.concatenate([fit.form.predict(fit.samples, at)[0] for fit in self.plausible])

    def errors(self, images, seen, operations, noise=0.0, kind: Sequence[str] | str = "") -> list[Range]:
        """The mean error of many runs at each point."""
        return [to_range(np.exp(values)) for values in self.sampled(images, seen, operations, noise, kind).T]

    @functools.cached_property
    def parameters(self) -> dict[str, Range]:
        """Of all plausible forms that have each: exponents, R*, kappa and e_inf."""
        found: dict[str, list[np.ndarray]] = {}
        for fit in self.plausible:
            for name, values in fit.form.natural(fit.samples).items():
                if name not in "ABC":  # amplitudes depend on the form
                    found.setdefault(name, []).append(values)
        return {name: to_range(np.concatenate(values)) for name, values in found.items()}

    @property
    def noise_acts_on(self) -> tuple[str, ...]:
        """What noise acts on by the plausible forms: keys of `forms.ACTS_ON`; several where they cannot be told apart,
        none without noise."""
        return tuple(dict.fromkeys(fit.form.noise for fit in self.plausible if fit.form.noise))


def to_range(values: Float[np.ndarray, " m"]) -> Range:
    """The median of samples and its intervals."""
    return Range(float(np.median(values)), tuple(interval(values, level) for level in LEVELS))


def fit(cells: Cells, chance: float | None = None, samples: int = SAMPLES, seed: int = 0,
        only: Sequence[Form] = ()) -> JointLaw:
    """Fit all forms whose parameters the cells can determine.

    Args:
      cells: without those that `Cells.memorised` marks.
      chance: error of guessing, which no prediction exceeds.
      samples: fits per form.
      only: the forms to take instead.

    Raises:
      UserError: too few cells, or cells that differ in neither images nor images seen.
    """
    from scipy import stats

    check(cells)
    reference = Reference(float(np.log(np.append(cells.images, cells.seen)).mean()),
                          float(np.log(cells.operations).mean()), cells.kinds)
    at, log_error = reference.of(cells), np.log(cells.error)
    e0 = None if chance is None else max(chance, 1.0001 * float(cells.error.max()))
    departure = DEPARTURE * (log_error - log_error.min())
    sigma = np.hypot(cells.standard_error, departure)
    rng = np.random.default_rng(seed)
    fitted = [_best(form, at, log_error, sigma) for form in
              only or forms(e0, float(cells.error.min()), len(cells.networks), cells.kinds)]
    fitted.sort(key=lambda one: one.misfit)
    # Where even the best form misses by more than noise, forms are approximations of that quality.
    freedom = max(len(cells) - len(fitted[0].theta), 1)
    inflation = max(1.0, fitted[0].misfit / freedom)
    fits = []
    for one in fitted:
        if (one.misfit - fitted[0].misfit) / inflation <= RULED_OUT:
            scale = np.sqrt(inflation)
            copies = (log_error + scale * (rng.standard_normal((samples, len(cells))) * cells.standard_error
                                           + rng.standard_normal((samples, 1)) * departure))
            one = dataclasses.replace(one, samples=_refit(one, at, copies, scale * sigma, rng))
        fits.append(one)
    count = samples * sum(one.samples is not None for one in fits)
    shares = (rng.permutation(count) + 0.5) / count
    bends = np.maximum(1 + BEND * stats.t.ppf(shares, BEND_FREEDOM), 0.0)
    return JointLaw(cells, chance, reference, tuple(fits), bends)


def check(cells: Cells) -> None:
    """Raises: UserError: as `fit`."""
    if len(cells) < FEWEST_CELLS:
        raise UserError(f"{len(cells)} cells of different images, images seen, networks or noise; expected at least "
                        f"{FEWEST_CELLS}; run more sizes")
    if np.unique(cells.images).size < 2 or np.unique(cells.seen).size < 2:
        what = "images" if np.unique(cells.images).size < 2 else "images seen"
        raise UserError(f"all cells have the same number of {what}; expected runs that differ in images and in images "
                        "seen; for one of the two, bvl laws has the answer")


def _best(form: Form, at: At, log_error: np.ndarray, sigma: np.ndarray) -> FormFit:
    """The best of fits from many starts."""
    theta = form.starts(at, log_error)
    for steps, kept in ((8, 6), (40, 2), (150, 1)):
        prior = np.array([parameter.mean for parameter in form.parameters])
        theta, cost = _solve(form, at, np.tile(log_error, (len(theta), 1)), sigma, np.tile(prior, (len(theta), 1)),
                             theta, steps)
        theta = theta[np.argsort(cost, kind="stable")[:kept]]
    residuals = form.predict(theta, at)[0][0] - log_error
    return FormFit(form, theta[0], float(cost.min()), float(np.sqrt(np.mean(residuals**2))))


def _refit(one: FormFit, at: At, copies: np.ndarray, sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parameters = one.form.parameters
    prior = (np.array([parameter.mean for parameter in parameters])
             + rng.standard_normal((len(copies), len(parameters))) * [parameter.spread for parameter in parameters])
    return _solve(one.form, at, copies, sigma, prior, np.tile(one.theta, (len(copies), 1)), 40)[0]


def _solve(form: Form, at: At, log_errors: np.ndarray, sigma: np.ndarray, prior: np.ndarray, theta: np.ndarray,
           steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Fits to each row of log errors, with a residual for each cell and one for each parameter's prior."""
    spread = np.array([parameter.spread for parameter in form.parameters])
    pull = np.diag(1 / spread)

    def residuals(tried, fits):
        log_error, slopes = form.predict(tried, at)
        return (np.concatenate([(log_error - log_errors[fits]) / sigma, (tried - prior[fits]) / spread], axis=1),
                np.concatenate([slopes / sigma[:, None], np.broadcast_to(pull, (len(tried), *pull.shape))], axis=1))

    weights = np.ones((len(theta), sigma.size + spread.size))
    return least_squares.solve(residuals, form.bounds, theta, weights, OUTLIER, steps)
