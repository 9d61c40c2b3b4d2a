"""What every head may ask of a backbone."""

from __future__ import annotations

import abc
import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.errors import UserError

ModuleList = getattr(nnx, "List", list)
"""A list of modules as a part of a module; Flax before 0.12 takes a plain list."""


class Features(nnx.Module):
    """A built backbone: a module from images to the outputs of its four stages (res2 to res5)."""

    channels: tuple[int, int, int, int]
    """Channels of each stage's output."""
    strides: tuple[int, int, int, int]
    """Input pixels per output pixel, a stage each: (4, 8, 16, 32) for the ImageNet stem without dilation."""

    @abc.abstractmethod
    def __call__(self, images: UInt8[Array, "b h w 3"], train: bool) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Stage outputs, finest first. ``train`` picks batch statistics (and updates the running ones)."""

    def begin(self, images: UInt8[Array, "b h w 3"], train: bool) -> Float[Array, "b h2 w2 c"]:
        """What comes before the first stage, for heads that run a backbone in pieces. Raises: UserError."""
        raise UserError(f"{type(self).__name__} runs only as a whole; take a ResNet for this head")

    def stage(self, index: int, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """One stage (0 to 3), on any input of the right number of channels. Raises: UserError."""
        raise UserError(f"{type(self).__name__} runs only as a whole; take a ResNet for this head")


@dataclasses.dataclass(frozen=True)
class Backbone(abc.ABC):
    """The description of a backbone; ``build`` makes its parameters."""

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> Features: ...


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How uint8 pixels become numbers: ``(pixel - mean) / std`` a channel. By default [-1, 1], as in the paper."""

    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def normalize(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """float32; runs on the device, so that images travel there as bytes."""
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 3) for v in (self.mean, self.std))
        return (images.astype(jnp.float32) - mean) / std
