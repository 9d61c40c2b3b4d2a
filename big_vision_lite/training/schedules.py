"""Learning-rate schedules: a factor on the peak rate as a function of the step."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike

from big_vision_lite.errors import UserError

Factor = Callable[[ArrayLike], ArrayLike]


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """Linear warm-up, then a shape of its own."""

    warmup: int = 0
    """Steps over which the rate rises linearly from 0."""

    @abc.abstractmethod
    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        """The factor after warm-up, at ``step`` of ``steps``."""

    def build(self, steps: int) -> Factor:
        """The factor in [0, 1] as a function of the step (0 at the first), for a run of ``steps``.

        Raises:
          UserError: warm-up is negative or not shorter than the run.
        """
        if not 0 <= self.warmup < max(steps, 1):
            raise UserError(f"warmup={self.warmup} steps; expected 0 to below the run's {steps}")
        return lambda step: jnp.minimum((step + 1) / (self.warmup + 1), 1.0) * self.shape(step, steps)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """No decay."""

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to ``final`` (Loshchilov and Hutter 2017)."""

    final: float = 0.0

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        progress = jnp.clip((step - self.warmup) / max(steps - self.warmup, 1), 0.0, 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """Times ``factor`` at each of the given fractions of the run (30, 60 and 80 of 90 epochs: 1/3, 2/3, 8/9)."""

    at: tuple[float, ...] = (1 / 3, 2 / 3, 8 / 9)
    factor: float = 0.1

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        passed = [jnp.where(step >= round(fraction * steps), self.factor, 1.0) for fraction in self.at]
        return math.prod(passed)


@dataclasses.dataclass(frozen=True)
class Staircase(Schedule):
    """Times ``factor`` every ``every`` steps. The paper's: 0.9 every 3 million steps of 32 images."""

    every: int = 3_000_000
    factor: float = 0.9

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        return self.factor ** jnp.floor(step / self.every)


@dataclasses.dataclass(frozen=True)
class Poly(Schedule):
    """``(1 - progress) ** power``, down to ``final``: DeepLab's (Chen et al. 2016, section 4.1.1)."""

    power: float = 0.9
    final: float = 0.0

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        progress = jnp.clip((step - self.warmup) / max(steps - self.warmup, 1), 0.0, 1.0)
        return self.final + (1.0 - self.final) * (1.0 - progress) ** self.power
