"""Optimisers as optax chains: clipping, weight decay, momentum or scaling, schedule."""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import jax
import optax
from optax import GradientTransformation

from big_vision_lite.errors import UserError
from big_vision_lite.training.schedules import Cosine, Schedule
from big_vision_lite.training.trees import Tree


@dataclasses.dataclass(frozen=True)
class Optimizer(abc.ABC):
    """Fields and chain that all optimisers share."""

    learning_rate: float = 0.1
    """Peak rate, not scaled by the batch size: configs give it as a formula of that."""
    schedule: Schedule = Cosine()
    """Shape of the rate over the run."""
    weight_decay: float = 1e-4
    """Per step, multiplied by the learning rate. SGD and RMSProp add it to the gradient before momentum or scaling
    (L2, as in the paper), AdamW after."""
    decay_mask: Literal["kernels", "all"] = "kernels"
    """Parameters that decay: only kernels, or biases and norm parameters too."""
    grad_clip_norm: float | None = None
    """Maximum global norm of the gradient; None: no clipping."""

    def __post_init__(self) -> None:
        """Raises: UserError for values out of range."""
        clip_norm = self.grad_clip_norm
        if self.learning_rate <= 0 or self.weight_decay < 0 or (clip_norm is not None and clip_norm <= 0):
            raise UserError(f"{type(self).__name__}: learning_rate={self.learning_rate}, weight_decay="
                            f"{self.weight_decay}, grad_clip_norm={clip_norm}; expected learning_rate and "
                            "grad_clip_norm above 0 and weight_decay of at least 0")

    @abc.abstractmethod
    def parts(self, decay: GradientTransformation, rate: GradientTransformation) -> tuple[GradientTransformation, ...]:
        """What follows clipping, in order: weight decay and learning rate among the optimiser's own parts."""

    def build(self, steps: int) -> GradientTransformation:
        """The chain for a run of ``steps`` steps. Raises: UserError as the schedule."""
        factor = self.schedule.build(steps)
        mask = None if self.decay_mask == "all" else _kernels
        decay = optax.add_decayed_weights(self.weight_decay, mask)
        rate = optax.scale_by_learning_rate(lambda step: self.learning_rate * factor(step))
        clip = [] if self.grad_clip_norm is None else [optax.clip_by_global_norm(self.grad_clip_norm)]
        return optax.chain(*clip, *self.parts(decay, rate))


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    nesterov: bool = False

    def parts(self, decay: GradientTransformation, rate: GradientTransformation) -> tuple[GradientTransformation, ...]:
        return decay, optax.trace(self.momentum, self.nesterov), rate


@dataclasses.dataclass(frozen=True)
class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), for batches of thousands: each kernel moves in proportion to
    its norm. Biases and norm parameters are not scaled. Self-supervised recipes take 0.3 x batch size / 256."""

    learning_rate: float = 0.3
    weight_decay: float = 1e-6
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    """Move of a kernel at rate 1, relative to its norm."""

    def parts(self, decay: GradientTransformation, rate: GradientTransformation) -> tuple[GradientTransformation, ...]:
        scale = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=self.trust_coefficient), _kernels)
        return decay, scale, rate, optax.trace(self.momentum)


@dataclasses.dataclass(frozen=True)
class RMSProp(Optimizer):
    """RMSProp with momentum: the paper's optimiser (as reported, not verified), with rate 1e-3 for 32 images.

    TensorFlow's, as in the paper: mean squares start at 1, epsilon is under the root, and a step's rate scales what
    that step adds to the momentum. PyTorch scales the whole momentum instead, so a falling rate also shrinks what
    earlier steps contributed; with a constant rate both are the same.
    """

    momentum: float = 0.9
    decay_rate: float = 0.9
    """Decay of the running mean of squared gradients."""
    epsilon: float = 1e-3

    def parts(self, decay: GradientTransformation, rate: GradientTransformation) -> tuple[GradientTransformation, ...]:
        scale = optax.scale_by_rms(self.decay_rate, self.epsilon, initial_scale=1.0)
        return decay, scale, rate, optax.trace(self.momentum)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8

    def parts(self, decay: GradientTransformation, rate: GradientTransformation) -> tuple[GradientTransformation, ...]:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon), decay, rate


def _kernels(params: Tree) -> Tree:
    """For each parameter, whether it is a kernel."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
