"""Gaussian heatmaps after deconvolutions (Xiao, Wu and Wei 2018, "Simple baselines for human pose estimation")."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from big_vision_lite.backbones.backbone import BackboneModule, ModuleList
from big_vision_lite.backbones.conv import same_conv
from big_vision_lite.backbones.norm import BatchNorm, GroupNorm
from big_vision_lite.errors import UserError
from big_vision_lite.heads.keypoints.codec import Codec, Grid
from big_vision_lite.system.fields import at_least


@dataclasses.dataclass(frozen=True)
class GaussianHeatmaps(Codec):
    """One heatmap per keypoint, regressed to a Gaussian around it with the squared error. It is read at its highest
    cell, moved by a quarter of a cell towards the higher neighbour, except at the border (Xiao et al.'s code).
    Gaussians are centred on the keypoint itself, not on the nearest cell.

    Raises: UserError for a field out of range.
    """

    deconvolutions: int = 3
    """Deconvolutions of stride 2 between the backbone and the heatmaps: three from stride 32 to 4."""
    channels: int = 256
    """Of each of them."""
    sigma: float = 2.0
    """Standard deviation of the Gaussian, in cells."""
    norm: BatchNorm | GroupNorm = BatchNorm()

    def __post_init__(self) -> None:
        at_least(self, 0, "deconvolutions")
        at_least(self, 1, "channels")
        if not self.sigma > 0:
            raise UserError(f"GaussianHeatmaps: sigma={self.sigma}; expected a number above 0")

    def build(self, backbone: BackboneModule, count: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        stride, steps = backbone.strides[-1], 2**self.deconvolutions
        if stride % steps:
            raise UserError(f"GaussianHeatmaps: {self.deconvolutions} deconvolutions on features of stride {stride} "
                            "would be finer than pixels; take fewer")
        return _Deconvolutions(self, backbone.channels[-1], stride // steps, count, dtype, rngs)

    def encode(self, keypoints: Float[Array, "b k 3"], grid: Grid) -> Float[Array, "b gh gw k"]:
        """The heatmaps of labelled keypoints."""
        def profile(points: Array, centres: Array) -> Array:  # a Gaussian is the product of two
            return jnp.exp(-((points[:, None] - centres[:, None]) ** 2) / (2 * (self.sigma * grid.stride) ** 2))

        down, across = (profile(keypoints[..., 1], jnp.asarray(grid.rows)),
                        profile(keypoints[..., 0], jnp.asarray(grid.columns)))
        return down[:, :, None] * across[:, None]

    def loss(self, outputs: Float[Array, "b gh gw k"], keypoints: Float[Array, "b k 3"],
             grid: Grid) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        weight = (keypoints[..., 2] > 0) & grid.inside(keypoints[..., :2])
        error = (outputs - self.encode(keypoints, grid)) ** 2
        return 0.5 * (error.mean((1, 2)) * weight).mean(1), {}

    def maps(self, outputs: Float[Array, "b gh gw k"]) -> tuple[Float[Array, "b gh gw k 1"]]:
        return (outputs[..., None],)

    def decode(self, maps: tuple[Float[Array, "b gh gw k 1"], ...],
               grid: Grid) -> tuple[Float[Array, "b k 2"], Float[Array, "b k"]]:
        heat = maps[0][..., 0].transpose(0, 3, 1, 2)  # [b, k, gh, gw]
        height, width = heat.shape[2:]
        best = heat.reshape(*heat.shape[:2], -1).argmax(-1)
        row, column = best // width, best % width

        def at(rows: Array, columns: Array) -> Array:
            index = (jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1))[..., None]
            return jnp.take_along_axis(heat.reshape(*heat.shape[:2], -1), index, -1)[..., 0]

        across = jnp.sign(at(row, column + 1) - at(row, column - 1))
        down = jnp.sign(at(row + 1, column) - at(row - 1, column))
        inner = jnp.stack([(column > 0) & (column < width - 1), (row > 0) & (row < height - 1)], -1)
        cells = jnp.stack([jnp.asarray(grid.columns)[column], jnp.asarray(grid.rows)[row]], -1)
        shift = jnp.where(inner, jnp.stack([across, down], -1), 0.0)
        return cells + 0.25 * grid.stride * shift, jnp.clip(heat.max((2, 3)), 0.0, 1.0)


class _Deconvolutions(nnx.Module):
    """Deconvolutions of 4x4 filters, each with a norm and a ReLU, and a 1x1 filter."""

    def __init__(self, config: GaussianHeatmaps, inputs: int, stride: int, count: int, dtype: DTypeLike,
                 rngs: nnx.Rngs):
        self.stride = stride
        init, deconvolutions, norms = nnx.initializers.normal(0.001), [], []
        for _ in range(config.deconvolutions):
            deconvolutions.append(nnx.ConvTranspose(inputs, config.channels, (4, 4), strides=(2, 2),
                                                    padding=((2, 2), (2, 2)), use_bias=False, kernel_init=init,
                                                    dtype=dtype, rngs=rngs))
            norms.append(config.norm.build(config.channels, zero=False, dtype=dtype, rngs=rngs))
            inputs = config.channels
        self.deconvolutions, self.norms = ModuleList(deconvolutions), ModuleList(norms)
        self.heatmaps = same_conv(inputs, count, 1, kernel_init=init, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b gh gw k"]:
        for deconvolution, norm in zip(self.deconvolutions, self.norms, strict=True):
            x = nnx.relu(norm(deconvolution(x), train))
        return self.heatmaps(x.astype(jnp.float32))
