"""From the backbone's stages to class scores on a grid: ASPP-L, DeepLabV3 and DeepLabV3+.

Rates are dilations of 3x3 filters on the last stage's grid. They span the rate times the backbone's output stride in
pixels: 6, 12, 18 at stride 16 see as far as 12, 24, 36 at stride 8.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, UInt32

from big_vision_lite.backbones.backbone import BackboneModule, Keys, ModuleList
from big_vision_lite.backbones.conv import same_conv
from big_vision_lite.backbones.norm import BatchNorm, GroupNorm
from big_vision_lite.errors import UserError
from big_vision_lite.system.fields import at_least

Stages = tuple[Float[Array, "b _ _ _"], ...]


def upsample(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Bilinear, with pixel centres at halves and the outermost values continued to the border, like torch's
    ``interpolate(align_corners=False)``."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)


@dataclasses.dataclass(frozen=True)
class Decoder(abc.ABC):
    """The config of a decoder; ``build`` creates its parameters. Raises: UserError for a field out of range."""

    rates: tuple[int, ...]

    def __post_init__(self) -> None:
        name, dropout = type(self).__name__, getattr(self, "dropout", 0.0)
        if not self.rates or any(rate < 1 for rate in self.rates):
            raise UserError(f"{name}: rates={self.rates}; expected at least one, each at least 1")
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"{name}: dropout={dropout}; expected 0 to below 1")
        at_least(self, 1, *(name for name in ("channels", "low_level_channels") if hasattr(self, name)))

    @abc.abstractmethod
    def build(self, backbone: BackboneModule, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        """A module ``(stages, train, keys) -> float32 [b, h, w, num_classes]``.

        Args:
          num_classes: including the background.
          dtype: of its convolutions; the last one is float32.
        """


@dataclasses.dataclass(frozen=True)
class ASPPL(Decoder):
    """Four 3x3 filters of different rates that give class scores, summed (Chen et al. 2016, section 3.2): the paper's
    decoder, there on a backbone of output stride 8."""

    rates: tuple[int, ...] = (6, 12, 18, 24)

    def build(self, backbone: BackboneModule, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        return _ASPPL(self, backbone.channels[-1], num_classes, rngs)


@dataclasses.dataclass(frozen=True)
class DeepLabV3(Decoder):
    """A 1x1 filter, 3x3 filters of different rates and the mean over the image, in parallel, each normalised; combined
    by a 1x1 and a 3x3 filter (Chen et al. 2017, section 3.3)."""

    rates: tuple[int, ...] = (6, 12, 18)
    """For output stride 16; 12, 24, 36 at 8."""
    channels: int = 256
    """Of each branch, and of what follows."""
    image_pooling: bool = True
    """Whether to have the branch of the mean over the image."""
    dropout: float = 0.1
    """Chance that a channel of an image is dropped before the last filter in training."""
    norm: BatchNorm | GroupNorm = BatchNorm()

    def build(self, backbone: BackboneModule, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        return _DeepLabV3(self, backbone.channels, num_classes, dtype, rngs)


@dataclasses.dataclass(frozen=True)
class DeepLabV3Plus(DeepLabV3):
    """As DeepLabV3, with its ASPP upsampled to the first stage's grid (stride 4) and concatenated with a few channels
    of that stage before two 3x3 filters (Chen et al. 2018, section 3.1), for sharper borders."""

    low_level_channels: int = 48
    """Of the first stage, after a 1x1 filter."""

    def build(self, backbone: BackboneModule, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        return _DeepLabV3Plus(self, backbone.channels, num_classes, dtype, rngs)


def _conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, *, rate: int = 1, bias: bool = False,
          dtype: DTypeLike = jnp.float32) -> nnx.Conv:
    # Filters that give class scores have a bias and start near zero, so that all classes start equally likely.
    init = nnx.initializers.normal(0.01) if bias else nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    return same_conv(inputs, outputs, size, kernel_init=init, dtype=dtype, rngs=rngs, dilation=rate, use_bias=bias)


class ConvNormRelu(nnx.Module):
    def __init__(self, inputs: int, outputs: int, size: int, norm: BatchNorm | GroupNorm, dtype: DTypeLike,
                 rngs: nnx.Rngs, rate: int = 1):
        self.conv = _conv(inputs, outputs, size, rngs, rate=rate, dtype=dtype)
        self.norm = norm.build(outputs, zero=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h w o"]:
        return nnx.relu(self.norm(self.conv(x), train))


def drop_channels(x: Float[Array, "b h w c"], rate: float, keys: UInt32[Array, "b 2"]) -> Float[Array, "b h w c"]:
    """Set each channel of an image to 0 with chance ``rate``, by the image's own key, and scale up the others."""
    is_kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, (x.shape[3],)))(keys)
    return x * (is_kept / (1.0 - rate)).astype(x.dtype)[:, None, None, :]


class _ASPPL(nnx.Module):
    def __init__(self, config: ASPPL, inputs: int, num_classes: int, rngs: nnx.Rngs):
        self.branches = ModuleList([_conv(inputs, num_classes, 3, rngs, rate=rate, bias=True) for rate in config.rates])

    def __call__(self, stages: Stages, train: bool, keys: Keys) -> Float[Array, "b h w k"]:
        x = stages[-1].astype(jnp.float32)
        return sum(branch(x) for branch in self.branches)


class ASPP(nnx.Module):
    """Atrous spatial pyramid pooling: parallel branches, combined to ``channels`` channels on the same grid."""

    def __init__(self, config: DeepLabV3, inputs: int, dtype: DTypeLike, rngs: nnx.Rngs):
        outputs = config.channels
        self.branches = ModuleList([
            ConvNormRelu(inputs, outputs, 1, config.norm, dtype, rngs),
            *(ConvNormRelu(inputs, outputs, 3, config.norm, dtype, rngs, rate) for rate in config.rates)])
        self.image_pooling = config.image_pooling
        if self.image_pooling:
            self.pooled = ConvNormRelu(inputs, outputs, 1, config.norm, dtype, rngs)
        count = len(self.branches) + self.image_pooling
        self.mix = ConvNormRelu(count * outputs, outputs, 1, config.norm, dtype, rngs)

    def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h w o"]:
        outputs = [branch(x, train) for branch in self.branches]
        if self.image_pooling:
            mean = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)
            outputs.append(jnp.broadcast_to(self.pooled(mean, train), outputs[0].shape))
        return self.mix(jnp.concatenate(outputs, -1), train)


class ClassScores(nnx.Module):
    """Dropout and the last filter."""

    def __init__(self, inputs: int, num_classes: int, dropout: float, rngs: nnx.Rngs):
        self.dropout = dropout
        self.conv = _conv(inputs, num_classes, 1, rngs, bias=True)

    def __call__(self, x: Float[Array, "b h w c"], train: bool, keys: Keys) -> Float[Array, "b h w k"]:
        if train and self.dropout and keys is not None:
            x = drop_channels(x, self.dropout, keys)
        return self.conv(x.astype(jnp.float32))


class _DeepLabV3(nnx.Module):
    def __init__(self, config: DeepLabV3, channels: tuple[int, ...], num_classes: int, dtype: DTypeLike,
                 rngs: nnx.Rngs):
        self.aspp = ASPP(config, channels[-1], dtype, rngs)
        self.refine = ConvNormRelu(config.channels, config.channels, 3, config.norm, dtype, rngs)
        self.scores = ClassScores(config.channels, num_classes, config.dropout, rngs)

    def __call__(self, stages: Stages, train: bool, keys: Keys) -> Float[Array, "b h w k"]:
        return self.scores(self.refine(self.aspp(stages[-1], train), train), train, keys)


class _DeepLabV3Plus(nnx.Module):
    def __init__(self, config: DeepLabV3Plus, channels: tuple[int, ...], num_classes: int, dtype: DTypeLike,
                 rngs: nnx.Rngs):
        self.aspp = ASPP(config, channels[-1], dtype, rngs)
        self.low_level = ConvNormRelu(channels[0], config.low_level_channels, 1, config.norm, dtype, rngs)
        inputs = config.channels + config.low_level_channels
        self.refine = ModuleList([ConvNormRelu(inputs, config.channels, 3, config.norm, dtype, rngs),
                                  ConvNormRelu(config.channels, config.channels, 3, config.norm, dtype, rngs)])
        self.scores = ClassScores(config.channels, num_classes, config.dropout, rngs)

    def __call__(self, stages: Stages, train: bool, keys: Keys) -> Float[Array, "b h w k"]:
        low = self.low_level(stages[0], train)
        x = jnp.concatenate([upsample(self.aspp(stages[-1], train), low.shape[1:3]), low], -1)
        for filters in self.refine:
            x = filters(x, train)
        return self.scores(x, train, keys)


class FCN(nnx.Module):
    """A 3x3 filter to a quarter of the channels, then class scores: the auxiliary head on the next-to-last stage (Zhao
    et al. 2016, section 3.3, in torchvision's form)."""

    def __init__(self, inputs: int, num_classes: int, norm: BatchNorm | GroupNorm, dropout: float, dtype: DTypeLike,
                 rngs: nnx.Rngs):
        self.filters = ConvNormRelu(inputs, max(inputs // 4, 1), 3, norm, dtype, rngs)
        self.scores = ClassScores(max(inputs // 4, 1), num_classes, dropout, rngs)

    def __call__(self, x: Float[Array, "b h w i"], train: bool, keys: Keys) -> Float[Array, "b h w k"]:
        return self.scores(self.filters(x, train), train, keys)
