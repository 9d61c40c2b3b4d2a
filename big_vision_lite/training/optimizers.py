"""Optimisers as optax chains: clipping, weight decay, momentum or scaling, schedule."""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import jax
import optax

from big_vision_lite.errors import UserError
from big_vision_lite.training.schedules import Cosine, Schedule


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

    @abc.abstractmethod
    def direction(self) -> tuple[optax.GradientTransformation, bool]:
        """The transformation without rate and decay, and whether decay is added after it."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """The chain for a run of ``steps`` steps. Raises: UserError for values out of range."""
        clip_norm = self.grad_clip_norm
        if self.learning_rate <= 0 or self.weight_decay < 0 or (clip_norm is not None and clip_norm <= 0):
            raise UserError(f"{type(self).__name__}: learning_rate={self.learning_rate}, weight_decay="
                            f"{self.weight_decay}, grad_clip_norm={clip_norm}; expected learning_rate and "
                            "grad_clip_norm above 0 and weight_decay of at least 0")
        factor = self.schedule.build(steps)
        mask = None if self.decay_mask == "all" else lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        decay = optax.add_decayed_weights(self.weight_decay, mask)
        direction, decay_last = self.direction()
        clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
        middle = [direction, decay] if decay_last else [decay, direction]
        rate = optax.scale_by_learning_rate(lambda step: self.learning_rate * factor(step))
        return optax.chain(*clip, *middle, rate)


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    nesterov: bool = False

    def direction(self) -> tuple[optax.GradientTransformation, bool]:
        return optax.trace(self.momentum, self.nesterov), False


@dataclasses.dataclass(frozen=True)
class RMSProp(Optimizer):
    """RMSProp with momentum: the paper's optimiser (as reported, not verified), with rate 1e-3 for 32 images."""

    momentum: float = 0.9
    decay_rate: float = 0.9
    """Decay of the running mean of squared gradients."""
    epsilon: float = 1e-3

    def direction(self) -> tuple[optax.GradientTransformation, bool]:
        scale = optax.scale_by_rms(self.decay_rate, self.epsilon, initial_scale=1.0)
        return optax.chain(scale, optax.trace(self.momentum)), False


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8

    def direction(self) -> tuple[optax.GradientTransformation, bool]:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon), True
