"""Disks and offsets (Papandreou et al. 2017, "Towards accurate multi-person pose estimation in the wild": G-RMI)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from big_vision_lite.backbones.backbone import BackboneModule
from big_vision_lite.backbones.conv import same_conv
from big_vision_lite.errors import UserError
from big_vision_lite.heads.keypoints.codec import Codec, Grid

PRIOR = math.log(0.02 / 0.98)
"""The first logit: about the share of a crop of 353 x 257 pixels that a disk of radius 25 covers."""


@dataclasses.dataclass(frozen=True)
class DiskOffsets(Codec):
    """For each keypoint, whether a cell is within a disk around it (a sigmoid), and from each cell of the disk the
    offset to the keypoint (section 2.2 of Papandreou et al.). Cells vote for where their offsets point to, with their
    probability as weight and a bilinear kernel; the keypoint is the mean of the votes around the cell with the most,
    and its score the votes around that mean, as a share of a disk's cells.

    The grid is that of the backbone's last stage, without upsampling to pixels; the paper has stride 8.

    Raises: UserError for a field out of range.
    """

    radius: float = 25.0
    """Of the disks, in pixels of the crop."""
    heatmap_weight: float = 4.0
    """Factor on the logistic loss."""
    offset_weight: float = 1.0
    """Factor on the Huber loss of offsets."""
    huber: float = 1.0
    """Pixels from which an error of an offset counts linearly; the paper does not give it."""

    def __post_init__(self) -> None:
        if not (self.radius > 0 and self.huber > 0 and self.heatmap_weight > 0 and self.offset_weight > 0):
            raise UserError(f"DiskOffsets: radius={self.radius}, huber={self.huber}, heatmap_weight="
                            f"{self.heatmap_weight}, offset_weight={self.offset_weight}; expected numbers above 0")

    def build(self, backbone: BackboneModule, count: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        if self.radius < backbone.strides[-1]:
            raise UserError(f"DiskOffsets: radius={self.radius:g} with features of stride {backbone.strides[-1]}: "
                            "a disk may have no cell; take a larger radius, or a backbone of smaller output_stride")
        return _Linear(backbone.channels[-1], backbone.strides[-1], count, rngs)

    def encode(self, keypoints: Float[Array, "b k 3"],
               grid: Grid) -> tuple[Bool[Array, "b gh gw k"], Float[Array, "b gh gw k 2"]]:
        """Whether each cell is in the disk of each keypoint, and the offset from it to the keypoint in pixels."""
        offsets = keypoints[:, None, None, :, :2] - jnp.asarray(grid.centres)[:, :, None]
        return (offsets**2).sum(-1) <= self.radius**2, offsets

    def loss(self, outputs: Float[Array, "b gh gw n"], keypoints: Float[Array, "b k 3"],
             grid: Grid) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """The sum over keypoints of the mean over cells, of both losses."""
        logits, offsets = self._split(outputs)
        in_disk, targets = self.encode(keypoints, grid)
        weight = ((keypoints[..., 2] > 0) & grid.inside(keypoints[..., :2]))[:, None, None]
        logistic = jax.nn.softplus(logits) - logits * in_disk
        squared = ((offsets - targets) ** 2).sum(-1)
        # The root has no gradient at 0, where the quadratic branch is used.
        distance = jnp.sqrt(jnp.where(squared > self.huber**2, squared, 1.0))
        error = jnp.where(squared > self.huber**2, self.huber * (distance - 0.5 * self.huber), 0.5 * squared)
        heatmap = (logistic * weight).mean((1, 2)).sum(-1)
        offset = (error * (in_disk & weight)).mean((1, 2)).sum(-1)
        return (self.heatmap_weight * heatmap + self.offset_weight * offset,
                {"heatmap_loss": heatmap, "offset_loss": offset})

    def _split(self, outputs: Float[Array, "b gh gw n"]) -> tuple[Float[Array, "b gh gw k"],
                                                                  Float[Array, "b gh gw k 2"]]:
        """Logits, and offsets in pixels; the network's are in radii, so that both have about unit size."""
        values = outputs.reshape(*outputs.shape[:3], -1, 3)
        return values[..., 0], self.radius * values[..., 1:]

    def maps(self, outputs: Float[Array, "b gh gw n"]) -> tuple[Float[Array, "b gh gw k 1"],
                                                                Float[Array, "b gh gw k 2"]]:
        logits, offsets = self._split(outputs)
        return jax.nn.sigmoid(logits)[..., None], offsets

    def unmirror(self, maps: tuple[Array, ...], mirror: tuple[int, ...]) -> tuple[Array, ...]:
        heat, offsets = super().unmirror(maps, mirror)
        return heat, offsets * jnp.array([-1.0, 1.0])

    def decode(self, maps: tuple[Float[Array, "b gh gw k _"], ...],
               grid: Grid) -> tuple[Float[Array, "b k 2"], Float[Array, "b k"]]:
        batch, height, width, count, _ = maps[0].shape
        votes = maps[1] + jnp.asarray(grid.centres)[:, :, None]
        votes = votes.reshape(batch, height * width, count, 2).transpose(0, 2, 1, 3)  # [b, k, cells, 2]
        heat = maps[0].reshape(batch, height * width, count).transpose(0, 2, 1)

        def kernel(position: Array, centres: Array) -> Array:
            return jnp.maximum(1.0 - jnp.abs(position[..., None] - centres) / grid.stride, 0.0)

        across = kernel(votes[..., 0], jnp.asarray(grid.columns))  # [b, k, cells, gw]
        down = kernel(votes[..., 1], jnp.asarray(grid.rows))
        voted = jnp.einsum("bkn,bkny,bknx->bkyx", heat, down, across).reshape(batch, count, -1)
        best = voted.argmax(-1)[..., None, None]
        weight = heat * (jnp.take_along_axis(down, best // width, -1) * jnp.take_along_axis(across, best % width, -1)
                         )[..., 0]
        points = (weight[..., None] * votes).sum(2) / jnp.maximum(weight.sum(-1), 1e-9)[..., None]
        near = jnp.maximum(1.0 - jnp.abs(votes - points[:, :, None]) / grid.stride, 0.0).prod(-1)
        return points, jnp.minimum((heat * near).sum(-1) * grid.stride**2 / (math.pi * self.radius**2), 1.0)


class _Linear(nnx.Module):
    """A 1x1 filter: a logit and two offsets per keypoint."""

    def __init__(self, inputs: int, stride: int, count: int, rngs: nnx.Rngs):
        self.stride = stride
        bias = jnp.tile(jnp.array([PRIOR, 0.0, 0.0]), count)
        self.conv = same_conv(inputs, 3 * count, 1, kernel_init=nnx.initializers.normal(0.01), dtype=jnp.float32,
                              rngs=rngs)
        self.conv.bias[...] = bias

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b gh gw n"]:
        return self.conv(x.astype(jnp.float32))
