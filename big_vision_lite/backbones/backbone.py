"""What every head may ask of a backbone."""

from __future__ import annotations

import abc
import dataclasses

from flax import nnx
from jax import Array
from jaxtyping import Float


class Features(nnx.Module):
    """A built backbone: a module from images to the outputs of its four stages (res2 to res5)."""

    channels: tuple[int, int, int, int]
    """Channels of each stage's output."""
    strides: tuple[int, int, int, int]
    """Input pixels per output pixel, a stage each: (4, 8, 16, 32) for the ImageNet stem without dilation."""

    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Stage outputs, finest first. ``train`` picks batch statistics (and updates the running ones)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Backbone(abc.ABC):
    """The description of a backbone; ``build`` makes its parameters."""

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> Features: ...
