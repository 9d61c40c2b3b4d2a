"""What the two kinds of heatmaps have in common: the interface, the grid and mirroring."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from big_vision_lite.backbones.backbone import BackboneModule


class Grid(NamedTuple):
    """Where the cells of a heatmap are, in pixels of the crop. It is symmetric about the crop's centre, so that a
    mirrored crop has a mirrored heatmap."""

    rows: np.ndarray
    """float32 ``[gh]``"""
    columns: np.ndarray
    """float32 ``[gw]``"""
    stride: int
    """Pixels between cells."""

    @classmethod
    def of(cls, shape: Sequence[int], pixels: Sequence[int], stride: int) -> Grid:
        """``shape`` (gh, gw) cells in a crop of ``pixels`` (height, width)."""
        rows, columns = (((side - stride * (count - 1)) / 2 + stride * np.arange(count)).astype(np.float32)
                         for count, side in zip(shape, pixels, strict=True))
        return cls(rows, columns, stride)

    @property
    def centres(self) -> np.ndarray:
        """float32 ``[gh, gw, 2]``: (x, y) of each cell."""
        return np.stack(np.broadcast_arrays(self.columns, self.rows[:, None]), -1)

    def inside(self, points: Float[Array, "*n 2"]) -> Array:
        """Whether points lie in the crop."""
        size = np.float32([self.columns[0] + self.columns[-1], self.rows[0] + self.rows[-1]])
        return ((points >= 0) & (points <= size)).all(-1)


@dataclasses.dataclass(frozen=True)
class Codec(abc.ABC):
    """The config of a kind of heatmaps: how they are computed, what they should be, and how they are read."""

    @abc.abstractmethod
    def build(self, backbone: BackboneModule, count: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        """A module from the backbone's last stage ``[b, h, w, c]`` to outputs float32 ``[b, gh, gw, n]`` for ``count``
        keypoints, with an attribute ``stride``: the crop's pixels per cell."""

    @abc.abstractmethod
    def loss(self, outputs: Float[Array, "b gh gw n"], keypoints: Float[Array, "b k 3"],
             grid: Grid) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """The loss of each crop, and its parts. Keypoints that are not labelled, or not in the crop, have none."""

    @abc.abstractmethod
    def maps(self, outputs: Float[Array, "b gh gw n"]) -> tuple[Float[Array, "b gh gw _ _"], ...]:
        """What `decode` takes, from the outputs of the module: arrays with axes for keypoints and components."""

    @abc.abstractmethod
    def decode(self, maps: tuple[Float[Array, "b gh gw _ _"], ...],
               grid: Grid) -> tuple[Float[Array, "b k 2"], Float[Array, "b k"]]:
        """Positions (x, y) in pixels of the crop, and a score from 0 to 1 of each."""

    def unmirror(self, maps: tuple[Float[Array, "b gh gw _ _"], ...],
                 mirror: tuple[int, ...]) -> tuple[Float[Array, "b gh gw _ _"], ...]:
        """The maps of mirrored crops, turned back: left keypoints at the left again."""
        return tuple(values[:, :, ::-1, jnp.array(mirror)] for values in maps)
