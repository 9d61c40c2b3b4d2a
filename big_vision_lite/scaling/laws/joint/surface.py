"""All forms of the joint law, fitted to cells: errors elsewhere, as `laws.prediction` gives them for one variable."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.joint.cells import Cells
from big_vision_lite.scaling.laws.joint.forms import ACTS_ON, At, Form, forms
from big_vision_lite.scaling.laws.joint.posterior import FormFit, fit_forms, natural, to_range
from big_vision_lite.scaling.laws.prediction import BEND, BEND_FREEDOM, SAMPLES, Range

FEWEST_CELLS = 6


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
    """Per sample of the plausible forms, the factor on what the error falls beyond the cells."""

    @property
    def plausible(self) -> tuple[FormFit, ...]:
        """The forms that are not ruled out."""
        return tuple(fit for fit in self.fits if fit.samples is not None)

    def sampled(self, images, seen, operations, noise=0.0, kind: Sequence[str] | str = "") -> Float[np.ndarray, "m n"]:
        """Log errors of all samples at points; arguments are broadcast."""
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
        """Of all plausible forms that have each: exponents, R* and e_inf; kappa by what noise acts on, as
        "kappa uniform on images seen"."""
        found: dict[str, list[np.ndarray]] = {}
        for fit in self.plausible:
            for name, values in natural(fit.form, fit.samples).items():
                if name in "ABC":  # amplitudes depend on the form
                    continue
                if name.startswith("kappa"):
                    name = f"{name} on {ACTS_ON[fit.form.noise]}"
                found.setdefault(name, []).append(values)
        return {name: to_range(np.concatenate(values)) for name, values in found.items()}

    @property
    def noise_acts_on(self) -> tuple[str, ...]:
        """What noise acts on by the plausible forms: keys of `forms.ACTS_ON`; several where they cannot be told apart,
        none without noise."""
        return tuple(dict.fromkeys(fit.form.noise for fit in self.plausible if fit.form.noise))


def fit(cells: Cells, chance: float | None = None, samples: int = SAMPLES, seed: int = 0,
        only: Sequence[Form] = ()) -> JointLaw:
    """Fit all forms whose parameters the cells can determine.

    Args:
      cells: without those that `Cells.memorised` marks.
      chance: error of guessing, which no prediction exceeds.
      samples: fits per form.
      only: the forms to take instead.

    Raises:
      UserError: too few cells, or cells that do not differ in images or not in images seen.
    """
    from scipy import stats

    check(cells)
    reference = Reference(float(np.log(np.append(cells.images, cells.seen)).mean()),
                          float(np.log(cells.operations).mean()), cells.kinds)
    e0 = None if chance is None else max(chance, 1.0001 * float(cells.error.max()))
    rng = np.random.default_rng(seed)
    fits = fit_forms(only or forms(e0, float(cells.error.min()), len(cells.networks), cells.kinds),
                     reference.of(cells), np.log(cells.error), cells.standard_error, samples, rng)
    count = samples * sum(one.samples is not None for one in fits)
    # Quantiles in random order vary less from seed to seed than draws.
    bends = np.maximum(1 + BEND * stats.t.ppf((rng.permutation(count) + 0.5) / count, BEND_FREEDOM), 0.0)
    return JointLaw(cells, chance, reference, fits, bends)


def check(cells: Cells) -> None:
    """Raises: UserError: as `fit`."""
    if len(cells) < FEWEST_CELLS:
        raise UserError(f"{len(cells)} cells of different images, images seen, networks or noise; expected at least "
                        f"{FEWEST_CELLS}; run more sizes")
    if np.unique(cells.images).size < 2 or np.unique(cells.seen).size < 2:
        what = "images" if np.unique(cells.images).size < 2 else "images seen"
        raise UserError(f"all cells have the same number of {what}; expected runs that differ in images and in images "
                        "seen; for one of the two, bvl laws has the answer")
