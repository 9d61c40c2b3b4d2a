"""Forms of the joint law: error as a function of images D, images seen S, operations N and the clean share q.

A form is built of parts, each from the literature. All work on logarithms, relative to a reference of the fitted cells,
and all obey three limits: images that are never seen count for nothing (D is at most S), a clean share of 1 changes
nothing, and no error exceeds that of guessing.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from big_vision_lite.scaling.laws.joint.posterior import Parameter, positive
from big_vision_lite.scaling.laws.law import clip, sigmoid, softplus

Repeats = Literal["repeated", "sum", "nested", "mixed"]
Noise = Literal["seen", "images", "both"]
Capacity = Literal["limit", "efficiency"]
SHARPNESS = {"sigmoid": 1.0, "Rosenfeld": 2.0}
"""Of the transition to guessing."""

FORMULAS = {
    "repeated": "x = B D_eff^-b, D_eff = D (1 + R* (1 - exp(-(S/D - 1) / R*)))",
    "sum": "x = A S^-a + B D^-b",
    "nested": "x = ((A S^-a)^(1/b) + (B D^-b)^(1/b))^b",
    "mixed": "x = ((A S^-a)^p + (B D^-b)^p)^(1/p)",
}
ACTS_ON = {"seen": "images seen", "images": "images", "both": "images and images seen"}


class At(NamedTuple):
    """Where a law is asked: logarithms, relative to a form's reference but for q. ``kind`` numbers the noise's kind."""

    images: Float[np.ndarray, " n"]
    seen: Float[np.ndarray, " n"]
    operations: Float[np.ndarray, " n"]
    clean: Float[np.ndarray, " n"]
    kind: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Form:
    """A joint law, e = e0 X / (e0^m + X^m)^(1/m) with X = e_inf + x + capacity, or e = X where e0 is None.

    ``repeats``: how D and S make x. *repeated*: Muennighoff et al. 2023: passes over the same images are worth
    less and less. *sum*: a term for steps and one for data, as in Kaplan et al. 2020, and Hoffmann et al.
    2022. *nested*: the sharper mixture of Kaplan et al. 2020. *mixed*: how sharp it is, is fitted.

    ``noise``: what q^kappa multiplies; None where all labels are right.

    ``capacity``: *limit* adds C N^-c to x (Hoffmann et al. 2022); *efficiency* multiplies x by N^-c: a larger network
    learns more from each image. None for one network.

    ``sharpness``: m. 2 is the modulus of Rosenfeld et al. 2020; 1 is M4 with alpha = 1.
    """

    repeats: Repeats
    envelope: Literal["sigmoid", "Rosenfeld"]
    noise: Noise | None
    capacity: Capacity | None
    e0: float | None
    scale: float
    """Lowest error of the fitted cells: a unit for amplitudes."""
    kinds: tuple[str, ...] = ("",)

    @property
    def name(self) -> str:
        parts = [self.repeats, self.envelope if self.e0 is not None else "",
                 f"noise on {ACTS_ON[self.noise]}" if self.noise else "",
                 f"capacity as {self.capacity}" if self.capacity else ""]
        return ", ".join(filter(None, parts))

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Of theta's columns. Exponents of 0.4 within a factor of 2 are usual in vision."""
        amplitude = positive("", 1e-4 * self.scale, 1e4 * self.scale, self.scale, 10.0, (self.scale,))
        exponent = positive("", 0.02, 4.0, 0.4, 2.0, (0.2, 0.6))
        of_repeats = {
            "repeated": [amplitude._replace(name="B"), exponent._replace(name="b"),
                         positive("R*", 0.1, 1000.0, 10.0, 4.0, (2.0, 20.0))],
            "sum": [amplitude._replace(name="A"), exponent._replace(name="a"), amplitude._replace(name="B"),
                    exponent._replace(name="b")],
        }
        of_repeats["nested"] = of_repeats["sum"]
        of_repeats["mixed"] = [*of_repeats["sum"], positive("p", 1.0, 20.0, 2.0, 2.0, (2.0,))]
        of_capacity = {
            None: [],
            "limit": [positive("C", 1e-4 * self.scale, 1e2 * self.scale, 0.3 * self.scale, 4.0, (0.3 * self.scale,)),
                      positive("c", 0.02, 2.0, 0.3, 2.0, (0.3,))],
            "efficiency": [Parameter("c", -0.5, 2.0, 0.1, 0.3, (0.1,), log=False)],
        }
        kappas = [Parameter(f"kappa {kind}".strip(), 0.0, 10.0, 1.2, 1.0, (1.2,), log=False) for kind in self.kinds]
        e_inf = Parameter("e_inf", 0.0, self.scale, 0.3 * self.scale, 0.4 * self.scale,
                          (0.05 * self.scale, 0.6 * self.scale), log=False)
        return (*of_repeats[self.repeats], *of_capacity[self.capacity], *(kappas if self.noise else ()), e_inf)

    def predict(self, theta: Float[np.ndarray, "b p"], at: At
                ) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b n p"]]:
        """Logarithms of the error, and their derivatives with respect to theta."""
        names = [parameter.name for parameter in self.parameters]
        value = {name: theta[:, i:i + 1] for i, name in enumerate(names)}
        slopes = {}
        # Labels: the derivatives of log D and log S with respect to kappa are log q, where noise acts.
        images, seen = np.minimum(at.images, at.seen)[None], at.seen[None]
        on_images = on_seen = 0.0
        if self.noise:
            kappa = sum(value[name] * (at.kind == i) for i, name in enumerate(n for n in names if n[:5] == "kappa"))
            on_images, on_seen = float(self.noise != "seen"), float(self.noise != "images")
            images, seen = images + on_images * kappa * at.clean, seen + on_seen * kappa * at.clean
        log_x, by_images, by_seen = _REPEATS[self.repeats](value, images, seen, slopes)
        if self.noise:
            by_kappa = (on_images * by_images + on_seen * by_seen) * at.clean
            for i, name in enumerate(n for n in names if n[:5] == "kappa"):
                slopes[name] = by_kappa * (at.kind == i)
        if self.capacity == "efficiency":
            log_x = log_x - value["c"] * at.operations
            slopes["c"] = np.broadcast_to(-at.operations, log_x.shape)
        # Sums: each term's share of X weighs its derivatives.
        log_sum = log_x
        if self.capacity == "limit":
            exponent = np.exp(value["c"])
            log_limit = value["C"] - exponent * at.operations
            log_sum = np.logaddexp(log_x, log_limit)
            share = np.exp(log_limit - log_sum)
            slopes = {name: slope * (1 - share) for name, slope in slopes.items()}
            slopes |= {"C": share, "c": -exponent * at.operations * share}
        total = np.exp(clip(log_sum)) + value["e_inf"]
        share = np.exp(clip(log_sum)) / total
        slopes = {name: slope * share for name, slope in slopes.items()} | {"e_inf": 1 / total}
        log_error = np.log(total)
        if self.e0 is not None:
            log_error, share = approach_chance(log_error, self.e0, SHARPNESS[self.envelope])
            slopes = {name: slope * share for name, slope in slopes.items()}
        return log_error, np.stack([np.broadcast_to(slopes[name], log_error.shape) for name in names], axis=-1)


def approach_chance(log_error: np.ndarray, e0: float, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """ln(e0 X / (e0^m + X^m)^(1/m)) of ln X, and its derivative."""
    above = sharpness * (log_error - np.log(e0))
    return log_error - softplus(above) / sharpness, 1 - sigmoid(above)


def log_effective(images: np.ndarray, seen: np.ndarray, r_star: np.ndarray
                  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln D_eff of Muennighoff et al. (2023), and its derivatives with respect to ln S and ln R*; D_eff = S where
    no image is repeated. All but ``r_star`` are logarithms.

    >>> log_d_eff, *_ = log_effective(np.log([100.0, 100.0]), np.log([50.0, 300.0]), np.array([1e9]))
    >>> np.exp(log_d_eff).round(3).tolist()  # at a large R*, a repeated image is worth a fresh one
    [50.0, 300.0]
    """
    passes = np.exp(np.clip(seen - images, 0.0, 50.0))
    repeats = passes - 1
    decay = np.exp(-repeats / r_star)
    worth = 1 + r_star * -np.expm1(-repeats / r_star)
    fresh = seen <= images
    log_d_eff = np.where(fresh, seen, images + np.log(worth))
    by_seen = np.where(fresh, 1.0, passes * decay / worth)
    by_r_star = np.where(fresh, 0.0, (worth - 1 - repeats * decay) / worth)
    return log_d_eff, by_seen, by_r_star


def _repeated(value, images, seen, slopes):
    b = np.exp(value["b"])
    log_d_eff, by_seen, by_r_star = log_effective(images, seen, np.exp(value["R*"]))
    slopes |= {"B": np.ones_like(log_d_eff), "b": -b * log_d_eff, "R*": -b * by_r_star}
    return value["B"] - b * log_d_eff, -b * (1 - by_seen), -b * by_seen


def _sum(value, images, seen, slopes):
    a, b = np.exp(value["a"]), np.exp(value["b"])
    of_seen, of_images = value["A"] - a * seen, value["B"] - b * images
    log_x = np.logaddexp(of_seen, of_images)
    share = np.exp(of_seen - log_x)
    slopes |= {"A": share, "a": -a * seen * share, "B": 1 - share, "b": -b * images * (1 - share)}
    return log_x, -b * (1 - share), -a * share


def _nested(value, images, seen, slopes):
    a, b = np.exp(value["a"]), np.exp(value["b"])
    of_seen, of_images = value["A"] - a * seen, value["B"] - b * images
    inner = np.logaddexp(of_seen / b, of_images / b)
    share = np.exp(of_seen / b - inner)
    # b is also the exponent of the mixture: d(b inner)/d ln b = b inner - the mean of both terms by their shares.
    mixed = b * inner - share * of_seen - (1 - share) * of_images
    slopes |= {"A": share, "a": -a * seen * share, "B": 1 - share, "b": -b * images * (1 - share) + mixed}
    return b * inner, -b * (1 - share), -a * share


def _mixed(value, images, seen, slopes):
    a, b, p = (np.exp(value[name]) for name in "abp")
    of_seen, of_images = value["A"] - a * seen, value["B"] - b * images
    inner = np.logaddexp(p * of_seen, p * of_images)
    share = np.exp(p * of_seen - inner)
    slopes |= {"A": share, "a": -a * seen * share, "B": 1 - share, "b": -b * images * (1 - share),
               "p": share * of_seen + (1 - share) * of_images - inner / p}
    return inner / p, -b * (1 - share), -a * share


_REPEATS = {"repeated": _repeated, "sum": _sum, "nested": _nested, "mixed": _mixed}


def forms(e0: float | None, scale: float, networks: int, kinds: tuple[str, ...]) -> tuple[Form, ...]:
    """All forms whose parameters the cells can determine: no capacity for one network, no kappa without noise.

    Args:
      e0: error of guessing.
      kinds: of noise; empty where all labels are right.
    """
    envelopes = ("sigmoid", "Rosenfeld") if e0 is not None else ("sigmoid",)
    noises = ("seen", "images", "both") if kinds else (None,)
    capacities = ("limit", "efficiency") if networks > 1 else (None,)
    return tuple(Form(repeats, envelope, noise, capacity, e0, scale, kinds or ("",))
                 for repeats, envelope, noise, capacity in itertools.product(FORMULAS, envelopes, noises, capacities))
