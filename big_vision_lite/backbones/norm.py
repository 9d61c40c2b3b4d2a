"""Normalisation: BatchNorm over the global batch or groups of it, GroupNorm, and weight-standardised convolution."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from big_vision_lite.backbones.conv import conv2d
from big_vision_lite.errors import UserError
from big_vision_lite.system.fields import at_least


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """BatchNorm (Ioffe and Szegedy 2015). Statistics and arithmetic are float32 for any input."""

    group: int | None = None
    """Images that share statistics. None: the whole global batch, on any number of devices. 32 is the paper's worker
    batch: consecutive images are normalised 32 at a time, without communication if each device holds whole groups."""
    momentum: float = 0.9
    """Weight of the old running statistics in each update."""
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        at_least(self, 1, "group")
        at_least(self, 0, "momentum", "epsilon")

    def build(self, channels: int, *, zero: bool, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        return _BatchNorm(self, channels, zero, dtype)


@dataclasses.dataclass(frozen=True)
class GroupNorm:
    """GroupNorm (Wu and He 2018) with weight-standardised convolutions (Qiao et al. 2019), as in BiT."""

    groups: int = 32
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        at_least(self, 1, "groups")
        at_least(self, 0, "epsilon")

    def build(self, channels: int, *, zero: bool, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        if channels % self.groups:
            raise UserError(f"GroupNorm: {channels} channels do not divide into groups={self.groups}; choose a "
                            "divisor of the narrowest stage's channels")
        init = nnx.initializers.zeros if zero else nnx.initializers.ones
        norm = nnx.GroupNorm(channels, num_groups=self.groups, epsilon=self.epsilon, scale_init=init,
                             dtype=dtype, rngs=rngs)
        return _WithoutTrain(norm)


def whole_batch(backbone: Any) -> Any:
    """The backbone with BatchNorm statistics over the whole batch, for batches too small for the groups that it was
    pretrained with. Its parameters do not change; one without BatchNorm is returned as it is."""
    norm = getattr(backbone, "norm", None)
    if not isinstance(norm, BatchNorm):
        return backbone
    return dataclasses.replace(backbone, norm=dataclasses.replace(norm, group=None))


class _WithoutTrain(nnx.Module):
    """Gives a norm without batch statistics the signature of BatchNorm."""

    def __init__(self, norm: nnx.Module):
        self.norm = norm

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        return self.norm(x)


class _BatchNorm(nnx.Module):
    def __init__(self, config: BatchNorm, channels: int, zero: bool, dtype: DTypeLike):
        self.config, self.dtype = config, dtype
        self.use_running_stats = False  # set by Transfer: normalise by the running statistics in training too
        self.scale = nnx.Param(jnp.full((channels,), 0.0 if zero else 1.0, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        scale, bias = self.scale[...], self.bias[...]
        if not train or self.use_running_stats:
            return _affine(x, self.mean[...], self.var[...], scale, bias, self.config.epsilon, self.dtype)
        group = self.config.group or x.shape[0]
        if x.shape[0] % group:
            raise UserError(f"BatchNorm: a batch of {x.shape[0]} does not divide into groups of {group}; change "
                            "the batch size, grad_accum_steps or group")
        grouped = x.reshape(x.shape[0] // group, group, *x.shape[1:])
        mean, var = _statistics(grouped)
        momentum = self.config.momentum
        self.mean[...] = momentum * self.mean[...] + (1.0 - momentum) * mean.mean(0)
        self.var[...] = momentum * self.var[...] + (1.0 - momentum) * var.mean(0)
        mean, var = (s[:, None, None, None] for s in (mean, var))
        return _affine(grouped, mean, var, scale, bias, self.config.epsilon, self.dtype).reshape(x.shape)


def _statistics(x: Float[Array, "g n h w c"]) -> tuple[Float[Array, "g c"], Float[Array, "g c"]]:
    """Mean and (biased) variance per group, in float32, in one pass over ``x``."""
    x = x.astype(jnp.float32)
    mean = x.mean((1, 2, 3))
    # A single pass loses a little precision, which can leave a variance just below zero.
    return mean, jnp.maximum((x * x).mean((1, 2, 3)) - mean * mean, 0.0)


def _affine(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike) -> Array:
    y = (x.astype(jnp.float32) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias
    return y.astype(dtype)


def standardize(kernel: Float[Array, "h w i o"], epsilon: float = 1e-10) -> Float[Array, "h w i o"]:
    """Weight standardisation: each output filter gets mean 0 and variance 1 over (h, w, i)."""
    mean = kernel.mean((0, 1, 2), keepdims=True)
    var = kernel.var((0, 1, 2), keepdims=True)
    return (kernel - mean) * jax.lax.rsqrt(var + epsilon)


class StandardizedConv(nnx.Conv):
    """A convolution without bias whose kernel is standardised at each use."""

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        kernel = standardize(self.kernel[...])
        return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding, self.kernel_dilation)
