"""What pretraining is worth in labelled images of another task: the error as a function of pretraining D and target T.

Effective data transferred of Hernandez et al., "Scaling Laws for Transfer" (2021): a pretrained network learns as one
from scratch would with T + D_T target images, D_T = k T^alpha D^beta. Their second variable is the size of the network;
here it is that of the pretraining set. Errors over T + D_T follow a power law above e_inf that levels off at guessing,
as in `joint.forms`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.answers import ERRORS, Terms
from big_vision_lite.scaling.laws.curves import format_count
from big_vision_lite.scaling.laws.joint import cells
from big_vision_lite.scaling.laws.joint.forms import SHARPNESS, approach_chance
from big_vision_lite.scaling.laws.joint.posterior import (
    FormFit,
    Parameter,
    describe,
    fit_forms,
    natural,
    positive,
    to_range,
)
from big_vision_lite.scaling.laws.law import clip
from big_vision_lite.scaling.laws.metric import Metric
from big_vision_lite.scaling.laws.prediction import SAMPLES, Range

FEWEST = 2
"""Different numbers of target images, and of pretraining images, that a law takes."""
SCRATCH = ("", "random")
"""Values of the column init of runs without pretraining."""


@dataclasses.dataclass(frozen=True)
class TransferCells:
    """Means over seeds of runs on a target task: pretrained in one way, and from scratch.

    ``images`` of pretraining is 0 from scratch.
    """

    name: str
    """How the runs differ from other transfers: frozen or fine-tuned, and the network."""
    metric: Metric
    chance: float | None
    images: Float[np.ndarray, " n"]
    target: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    seeds: Int[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]
    """Standard deviation of the log error from seed to seed."""

    @property
    def standard_error(self) -> Float[np.ndarray, " n"]:
        return self.sigma / np.sqrt(self.seeds)

    @property
    def harmed(self) -> Bool[np.ndarray, " n"]:
        """Pretrained cells whose error is above that from scratch at the same T by more than `cells.RISE` standard
        errors of the difference: outside the law, in which pretraining never harms."""
        harmed = np.zeros(self.error.size, bool)
        for i in np.flatnonzero(self.images > 0):
            for j in np.flatnonzero((self.images == 0) & (self.target == self.target[i])):
                spread = np.hypot(self.standard_error[i], self.standard_error[j])
                harmed[i] = np.log(self.error[i] / self.error[j]) > cells.RISE * spread
        return harmed


class AtTransfer(NamedTuple):
    """Logarithms of T and D relative to their references, and which runs are from scratch."""

    target: Float[np.ndarray, " n"]
    images: Float[np.ndarray, " n"]
    scratch: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class TransferForm:
    """e = e0 X / (e0^m + X^m)^(1/m), X = e_inf + B (T + k T^alpha D^beta)^-b; e = X where e0 is None."""

    envelope: Literal["sigmoid", "Rosenfeld"]
    e0: float | None
    scale: float
    """Lowest error of the fitted cells."""

    @property
    def name(self) -> str:
        return self.envelope if self.e0 is not None else "power"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Of theta's columns."""
        return (positive("B", 1e-4 * self.scale, 1e4 * self.scale, self.scale, 10.0, (self.scale,)),
                positive("b", 0.02, 4.0, 0.4, 2.0, (0.2, 0.6)),
                positive("k", 1e-6, 1e4, 1.0, 10.0, (0.1, 1.0, 10.0)),
                Parameter("alpha", -1.0, 1.5, 0.4, 0.4, (0.1, 0.6), log=False),
                Parameter("beta", 0.0, 2.0, 0.4, 0.3, (0.4,), log=False),
                Parameter("e_inf", 0.0, self.scale, 0.3 * self.scale, 0.4 * self.scale,
                          (0.05 * self.scale, 0.6 * self.scale), log=False))

    def transferred(self, theta: Float[np.ndarray, "b p"], at: AtTransfer) -> Float[np.ndarray, "b n"]:
        """ln D_T relative to T's reference; -inf from scratch."""
        k, alpha, beta = (theta[:, i:i + 1] for i in (2, 3, 4))
        return np.where(at.scratch, -np.inf, k + alpha * at.target + beta * at.images)

    def predict(self, theta: Float[np.ndarray, "b p"], at: AtTransfer
                ) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b n p"]]:
        """Logarithms of the error, and their derivatives with respect to theta."""
        log_b, b, e_inf = theta[:, :1], np.exp(theta[:, 1:2]), theta[:, 5:]
        transferred = self.transferred(theta, at)
        effective = np.logaddexp(at.target, transferred)
        share = np.exp(transferred - effective)  # of D_T in the effective data
        reducible = np.exp(clip(log_b - b * effective))
        total = reducible + e_inf
        by_effective = -b * share
        ones = np.ones_like(effective)
        slopes = np.stack([ones, -b * effective, by_effective, by_effective * at.target, by_effective * at.images,
                           1 / reducible], axis=-1) * (reducible / total)[..., None]
        log_error = np.log(total)
        if self.e0 is not None:
            log_error, share = approach_chance(log_error, self.e0, SHARPNESS[self.envelope])
            slopes = slopes * share[..., None]
        return log_error, slopes


@dataclasses.dataclass(frozen=True)
class TransferLaw:
    """The forms fitted to cells of one kind of transfer."""

    cells: TransferCells
    fits: tuple[FormFit, ...]
    log_target: float
    log_images: float

    @property
    def plausible(self) -> tuple[FormFit, ...]:
        """The forms that are not ruled out."""
        return tuple(fit for fit in self.fits if fit.samples is not None)

    def _at(self, images, target) -> AtTransfer:
        images, target = np.broadcast_arrays(*(np.atleast_1d(np.asarray(values, float)) for values in (images, target)))
        return AtTransfer(np.log(target) - self.log_target,
                          np.log(np.where(images > 0, images, 1.0)) - self.log_images, images == 0)

    def worth(self, images, target) -> list[Range]:
        """Labelled target images that a pretraining on so many images is worth to someone who has ``target``: D_T."""
        at = self._at(images, target)
        logs = np.concatenate([fit.form.transferred(fit.samples, at) for fit in self.plausible])
        return [to_range(np.exp(values + self.log_target)) for values in logs.T]

    def errors(self, images, target) -> list[Range]:
        """The mean error of many runs; ``images`` is 0 from scratch."""
        at = self._at(images, target)
        logs = np.concatenate([fit.form.predict(fit.samples, at)[0] for fit in self.plausible])
        return [to_range(np.exp(values)) for values in logs.T]

    @property
    def parameters(self) -> dict[str, Range]:
        """Exponents and e_inf, over the plausible forms."""
        by_form = [natural(fit.form, fit.samples) for fit in self.plausible]
        return {name: to_range(np.concatenate([found[name] for found in by_form]))
                for name in ("alpha", "beta", "b", "e_inf")}


def read_transfers(sources: Sequence[Path], score: str | None = None, lower_is_better: bool = False
                   ) -> list[TransferCells]:
    """The transfers in results.csv files. Raises: UserError: as `cells.read_surface`."""
    return transfers_of(cells.read_done(sources), ", ".join(map(str, sources)), score, lower_is_better)


def transfers_of(rows: Sequence[tuple[Path, dict[str, str]]], where: str, score: str | None = None,
                 lower_is_better: bool = False) -> list[TransferCells]:
    """The transfers among finished rows of results.csv, each with its file: runs with a number of ``target_images``.
    Empty if there are none.

    Those from scratch (init random) are the reference of every way of transfer with the same network. Pretrainings with
    wrong labels are left out.

    Raises:
      UserError: as `cells.surface_of`.
    """
    rows = [(path, row) for path, row in rows if row.get("target_images")]
    if not rows:
        return []
    metric = cells.choose_metric(rows, score, lower_is_better, where)
    rows = [(path, row) for path, row in rows if row.get(metric.name)]
    scratch: dict[str, list[tuple[float, float, float]]] = {}
    pretrained: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for path, row in rows:
        network = ", ".join(f"{name} {row[name]}" for name in cells.NETWORK if row.get(name))
        target, error = cells.number(path, row, "target_images"), cells.error_of(path, row, metric)
        if row.get("init", "") in SCRATCH:
            scratch.setdefault(network, []).append((0.0, target, error))
        elif not row.get("noise") or cells.number(path, row, "noise", low=0.0) == 0:
            way = "frozen" if row.get("frozen", "").lower() == "true" else "fine-tuned"
            pretrained.setdefault((network, way), []).append((cells.number(path, row, "images"), target, error))
    chance = cells.chance_of([row for _, row in rows if row.get("init", "") in SCRATCH], metric)
    return [_cells(", ".join(filter(None, key)), metric, chance, [*scratch.get(key[0], []), *runs])
            for key, runs in sorted(pretrained.items())]


def _cells(name: str, metric: Metric, chance: float | None, runs: Sequence[tuple[float, float, float]]
           ) -> TransferCells:
    groups: dict[tuple[float, float], list[float]] = {}
    for images, target, error in sorted(runs):
        groups.setdefault((images, target), []).append(error)
    images, target = np.array(list(groups)).T
    errors = [np.array(values) for values in groups.values()]
    return TransferCells(name, metric, chance, images, target, np.array([values.mean() for values in errors]),
                         np.array([values.size for values in errors]),
                         cells.seed_noise([np.log(values) for values in errors]))


def fit(found: TransferCells, samples: int = SAMPLES, seed: int = 0) -> TransferLaw:
    """Fit the law of transfer to the cells that pretraining did not harm.

    Raises:
      UserError: fewer than `FEWEST` numbers of target images from scratch, or of pretraining images.
    """
    kept = ~found.harmed
    images, target, error = found.images[kept], found.target[kept], found.error[kept]
    counts = {"target images from scratch": np.unique(target[images == 0]).size,
              "pretraining images that do not harm": np.unique(images[images > 0]).size}
    for what, count in counts.items():
        if count < FEWEST:
            raise UserError(f"transfer, {found.name}: {count} different numbers of {what}; expected at least {FEWEST}; "
                            "run more sizes")
    e0 = None if found.chance is None else max(found.chance, 1.0001 * float(error.max()))
    log_target, log_images = float(np.log(target).mean()), float(np.log(images[images > 0]).mean())
    forms = [TransferForm(envelope, e0, float(error.min())) for envelope in (SHARPNESS if e0 is not None else
                                                                           ("sigmoid",))]
    at = AtTransfer(np.log(target) - log_target, np.log(np.where(images > 0, images, 1.0)) - log_images, images == 0)
    fits = fit_forms(forms, at, np.log(error), found.standard_error[kept], samples, np.random.default_rng(seed))
    return TransferLaw(found, fits, log_target, log_images)


def in_words(law: TransferLaw, terms: Terms = ERRORS) -> list[str]:
    """What each pretraining is worth, a line each: at the fewest and the most target images."""
    found = law.cells
    parameters = law.parameters
    lines = [f"worth k T^alpha D^beta target images: alpha {describe(parameters['alpha'])}; beta "
             f"{describe(parameters['beta'])}"]
    for images in np.unique(found.images[found.images > 0]).tolist():
        targets = np.unique(found.target[found.images == images])
        for target in dict.fromkeys((float(targets.min()), float(targets.max()))):
            at = (found.images == images) & (found.target == target)
            observed = f"{terms.name} {terms.value(float(found.error[at][0]))}"
            scratch = found.error[(found.images == 0) & (found.target == target)]
            against = f", from scratch {terms.value(float(scratch[0]))}" if scratch.size else ""
            if found.harmed[at].any():
                worth = "worse than from scratch: worth nothing here"
            else:
                value = law.worth(images, target)[0]
                worth = (f"worth {format_count(value.median)} more labelled images, 95 % interval "
                         f"{' to '.join(map(format_count, value.intervals[-1]))}")
            lines.append(f"pretrained on {format_count(images)} images, {format_count(target)} target images "
                         f"({observed}{against}): {worth}")
    return lines
