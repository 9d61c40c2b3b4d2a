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


def steps_of(length: float, steps: int) -> int:
    """``length`` in steps: below 1 it is a share of the run's ``steps``, rounded down, else a number of steps."""
    return int(length * steps + 1e-6) if length < 1 else int(length)  # 1e-6 for rounding: 0.29 * 100 is below 29


def check_length(name: str, length: float) -> None:
    """Raises: UserError when a length is neither a share of the run nor a whole number of steps."""
    if length <= 0 or (length > 1 and length != int(length)):
        raise UserError(f"{name}={length}; expected a share of the run below 1 or a whole number of steps")


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """Linear warm-up, then a shape of its own."""

    warmup: float = 0
    """Length of the linear rise from 0: below 1 a share of the run, from 1 on a number of steps."""

    def __post_init__(self) -> None:
        if self.warmup != 0:
            check_length("warmup", self.warmup)

    @abc.abstractmethod
    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        """The factor after warm-up, at ``step`` of ``steps``."""

    def warmup_steps(self, steps: int) -> int:
        """Warm-up of a run of ``steps``."""
        return steps_of(self.warmup, steps)

    def progress(self, step: ArrayLike, steps: int) -> ArrayLike:
        """Share of the run after warm-up that lies before ``step``, in [0, 1]."""
        warmup = self.warmup_steps(steps)
        return jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)

    def build(self, steps: int) -> Factor:
        """The factor in [0, 1] as a function of the step (the first is 0), for a run of ``steps``.

        Raises:
          UserError: warm-up is not shorter than the run.
        """
        warmup = self.warmup_steps(steps)
        if warmup >= max(steps, 1):
            raise UserError(f"warmup={self.warmup} steps; expected fewer than the run's {steps}")
        return lambda step: jnp.minimum((step + 1) / (warmup + 1), 1.0) * self.shape(step, steps)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """No decay."""

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Cooldown(Schedule):
    """Constant, then a linear fall to 0 at the end of the run (Zhai et al. 2022, section 3.4; Hägele et al. 2024).
    Before the fall, runs of all lengths have the same rates, so that they can share their first steps: see `Branch`."""

    length: float = 0.2
    """Of the fall: below 1 a share of the run, from 1 on a number of steps; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length != 0:
            check_length("length", self.length)

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        return jnp.clip((steps - step) / (steps_of(self.length, steps) + 1), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to ``final`` (Loshchilov and Hutter 2017)."""

    final: float = 0.0

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * self.progress(step, steps)))


@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """Multiplied by ``factor`` at each of these shares of the run (1/3, 2/3 and 8/9: epochs 30, 60 and 80 of 90)."""

    at: tuple[float, ...] = (1 / 3, 2 / 3, 8 / 9)
    factor: float = 0.1

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        return math.prod([jnp.where(step >= round(share * steps), self.factor, 1.0) for share in self.at])


@dataclasses.dataclass(frozen=True)
class Staircase(Schedule):
    """Multiplied by ``factor`` every ``every`` steps. The paper: 0.9 every 3 million of 36 million steps."""

    every: float = 3_000_000
    """Below 1 a share of the run, from 1 on a number of steps."""
    factor: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length("Staircase: every", self.every)

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        return self.factor ** jnp.floor(step / max(steps_of(self.every, steps), 1))


@dataclasses.dataclass(frozen=True)
class Poly(Schedule):
    """``(1 - progress) ** power``, down to ``final``: DeepLab's (Chen et al. 2016, section 4.1.1)."""

    power: float = 0.9
    final: float = 0.0

    def shape(self, step: ArrayLike, steps: int) -> ArrayLike:
        return self.final + (1.0 - self.final) * (1.0 - self.progress(step, steps)) ** self.power
