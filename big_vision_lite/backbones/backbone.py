"""The interface between backbones and heads."""

from __future__ import annotations

import abc
import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8, UInt32

from big_vision_lite.errors import UserError

ModuleList = getattr(nnx, "List", list)
"""A list of submodules; Flax before 0.12 takes a plain list."""

Keys = UInt32[Array, "b 2"] | None
"""One random key per image."""


class BackboneModule(nnx.Module):
    """A built backbone: a stem and four stages (res2 to res5).

    ``train`` selects batch statistics and updates the running ones. ``keys`` are for regularisation in training, such
    as stochastic depth; heads pass ``batch["key"]``.
    """

    channels: tuple[int, int, int, int]
    """Channels of each stage's output."""
    strides: tuple[int, int, int, int]
    """Input pixels per output pixel of each stage: (4, 8, 16, 32) for the ImageNet stem without dilation."""

    @abc.abstractmethod
    def begin(self, images: UInt8[Array, "b h w 3"], train: bool) -> Float[Array, "b h2 w2 c"]:
        """The stem: what comes before the first stage."""

    @abc.abstractmethod
    def stage(self, index: int, x: Float[Array, "b h w c"], train: bool,
              keys: Keys = None) -> Float[Array, "b h2 w2 c2"]:
        """Stage ``index`` (0 to 3), for an input of any size."""

    def __call__(self, images: UInt8[Array, "b h w 3"], train: bool,
                 keys: Keys = None) -> tuple[Float[Array, "b _ _ _"], ...]:
        """The outputs of all four stages, finest first."""
        x, outputs = self.begin(images, train), []
        for index in range(4):
            x = self.stage(index, x, train, keys)
            outputs.append(x)
        return tuple(outputs)


@dataclasses.dataclass(frozen=True)
class Backbone(abc.ABC):
    """The config of a backbone; ``build`` creates its parameters."""

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> BackboneModule: ...


@dataclasses.dataclass(frozen=True)
class PixelNormalization:
    """How uint8 pixels become numbers: ``(pixel - mean) / std`` per channel. By default [-1, 1], as in the paper.

    Raises: UserError for standard deviations that are not above 0.
    """

    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self) -> None:
        if not all(value > 0 for value in self.std):
            raise UserError(f"PixelNormalization: std={self.std}; expected numbers above 0")

    def normalize(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """float32; runs on the device, so that images travel there as bytes."""
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 3) for v in (self.mean, self.std))
        return (images.astype(jnp.float32) - mean) / std
