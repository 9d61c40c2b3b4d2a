"""ResNets (He et al. 2015) in Flax NNX: the paper's backbone and its variants.

Post-activation, stride in the 3x3 convolution of a bottleneck, symmetric padding: the arithmetic of torchvision's
ResNets, so that weights go both ways.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, UInt8, UInt32

from big_vision_lite.backbones.backbone import Backbone, BackboneModule, Keys, ModuleList, PixelNormalization
from big_vision_lite.backbones.conv import same_conv
from big_vision_lite.backbones.norm import BatchNorm, GroupNorm, StandardizedConv
from big_vision_lite.backbones.pool import max_pool
from big_vision_lite.backbones.repeated import run_block
from big_vision_lite.errors import UserError

BLOCKS = {
    10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
"""Blocks per stage by depth (He et al. 2015, table 1; 200 from He et al. 2016; 10 is 18 with one block per stage, for
small machines)."""

STEMS = {"imagenet": (7, 2), "half": (3, 2), "small": (3, 1)}
"""Size and stride of the first convolution."""

_DROP_PATH_STREAM = 0x6470
"""Folded into the keys, so that heads may draw from the same ones."""


@dataclasses.dataclass(frozen=True)
class ResNet(Backbone):
    """A residual network of 10 to 200 layers. Raises: UserError for a field out of range."""

    depth: Literal[10, 18, 34, 50, 101, 152, 200] = 50
    """Layers; from 50 up the blocks are bottlenecks."""
    width: float = 1.0
    """Factor on the channels of every layer."""
    norm: BatchNorm | GroupNorm = BatchNorm()
    """BatchNorm, or GroupNorm with weight-standardised convolutions."""
    stem: Literal["imagenet", "half", "small"] = "imagenet"
    """``imagenet``: a 7x7 convolution of stride 2, then max-pooling of stride 2. For small images, one 3x3 convolution
    of stride 2 (``half``) or 1 (``small``), which divides all strides by 2 or 4."""
    output_stride: Literal[8, 16, 32] = 32
    """Stride of the last stage with the ImageNet stem. Below 32 the last stages dilate instead of striding."""
    zero_last_norm: bool = True
    """Start every block as the identity, by a zero scale in its last norm (Goyal et al. 2017)."""
    drop_path: float = 0.0
    """Stochastic depth (Huang et al. 2016): the chance that training skips the residual branch of the last block for an
    image, falling linearly to the first block. The other branches are scaled up, which preserves the expectation."""
    pixels: PixelNormalization = PixelNormalization()
    """How uint8 pixels become the network's input."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the convolutions. Parameters and statistics are always float32."""

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise UserError(f"ResNet: depth={self.depth}; expected one of {', '.join(map(str, BLOCKS))}")
        if self.output_stride not in (8, 16, 32):
            raise UserError(f"ResNet: output_stride={self.output_stride}; expected 8, 16 or 32")
        if not 0.0 <= self.drop_path < 1.0:
            raise UserError(f"ResNet: drop_path={self.drop_path}; expected 0 to below 1")
        if round(64 * self.width) < 1:
            raise UserError(f"ResNet: width={self.width} leaves no channels; expected at least {1 / 64}")

    def build(self, rngs: nnx.Rngs) -> ResNetModule:
        return ResNetModule(self, rngs)


def _conv(config: ResNet, rngs: nnx.Rngs) -> Callable[..., nnx.Conv]:
    kind = StandardizedConv if isinstance(config.norm, GroupNorm) else nnx.Conv
    init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    return partial(same_conv, kernel_init=init, dtype=jnp.dtype(config.dtype), rngs=rngs, use_bias=False, kind=kind)


def _norm(config: ResNet, channels: int, rngs: nnx.Rngs, last: bool = False) -> nnx.Module:
    return config.norm.build(channels, zero=last and config.zero_last_norm, dtype=jnp.dtype(config.dtype), rngs=rngs)


def drop_path(x: Float[Array, "b h w c"], rate: float | Float[Array, ""], keys: UInt32[Array, "b 2"],
              block: int | Int[Array, ""]) -> Float[Array, "b h w c"]:
    """Set an image's features to 0 with chance ``rate``, by its own key and the block's number; scale up the others."""
    def is_kept(key: Array) -> Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), _DROP_PATH_STREAM)
        return jax.random.bernoulli(jax.random.fold_in(key, block), 1.0 - rate)

    factor = jnp.where(jax.vmap(is_kept)(keys), 1.0 / (1.0 - rate), 0.0).astype(x.dtype)
    return x * factor[:, None, None, None]


Dropped = tuple[float | Array, int | Array] | tuple[()]
"""How often stochastic depth drops a block's residual branch, and the block's number in the network, from 1."""


class Block(nnx.Module):
    """A residual block: two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1."""

    def __init__(self, config: ResNet, inputs: int, channels: int, stride: int, dilation: tuple[int, int],
                 rngs: nnx.Rngs):
        conv, norm = _conv(config, rngs), partial(_norm, config, rngs=rngs)
        first, rest = dilation  # a dilated stage's first block still sees features of the stage before
        self.bottleneck = config.depth >= 50
        if self.bottleneck:
            outputs = 4 * channels
            self.conv1, self.norm1 = conv(inputs, channels, 1), norm(channels)
            self.conv2, self.norm2 = conv(channels, channels, 3, stride=stride, dilation=first), norm(channels)
            self.conv3, self.norm3 = conv(channels, outputs, 1), norm(outputs, last=True)
        else:
            outputs = channels
            self.conv1, self.norm1 = conv(inputs, channels, 3, stride=stride, dilation=first), norm(channels)
            self.conv2, self.norm2 = conv(channels, outputs, 3, dilation=rest), norm(outputs, last=True)
        self.project = stride != 1 or inputs != outputs
        if self.project:
            self.shortcut, self.shortcut_norm = conv(inputs, outputs, 1, stride=stride), norm(outputs)

    def __call__(self, x: Float[Array, "b h w c"], keys: Keys = None, dropped: Dropped = (), *,
                 train: bool) -> Float[Array, "b h2 w2 c2"]:
        y = nnx.relu(self.norm1(self.conv1(x), train))
        y = self.norm2(self.conv2(y), train)
        if self.bottleneck:
            y = self.norm3(self.conv3(nnx.relu(y)), train)
        if train and dropped:
            if keys is None:
                raise UserError("ResNet: drop_path needs a head that passes batch['key'] to its backbone in training; "
                                "set it to 0")
            rate, number = dropped
            y = drop_path(y, rate, keys, number)
        if self.project:
            x = self.shortcut_norm(self.shortcut(x), train)
        return nnx.relu(y + x)


class ResNetModule(BackboneModule):
    """A built ResNet. ``stem``, ``stem_norm`` and ``stages`` are public, for surgery and weight import."""

    def __init__(self, config: ResNet, rngs: nnx.Rngs):
        self.config = config
        base = [round(64 * config.width * 2**i) for i in range(4)]
        expansion = 4 if config.depth >= 50 else 1
        size, stem_stride = STEMS[config.stem]
        self.stem = _conv(config, rngs)(3, base[0], size, stride=stem_stride)
        self.stem_norm = _norm(config, base[0], rngs)
        stride, channels, stages, strides = 4, base[0], [], []
        dilation = 1
        for i, (count, width) in enumerate(zip(BLOCKS[config.depth], base, strict=True)):
            step, before = (1 if i == 0 else 2), dilation
            if stride * step > config.output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            blocks = []
            for j in range(count):
                rates = (before if j == 0 else dilation, dilation)
                blocks.append(Block(config, channels, width, step if j == 0 else 1, rates, rngs))
                channels = width * expansion
            stages.append(ModuleList(blocks))
            strides.append(stride if config.stem == "imagenet" else stride * stem_stride // 4)
        self.stages = ModuleList(stages)
        self.channels = tuple(w * expansion for w in base)
        self.strides = tuple(strides)

    def begin(self, images: UInt8[Array, "b h w 3"], train: bool) -> Float[Array, "b h2 w2 c"]:
        x = self.config.pixels.normalize(images)
        x = nnx.relu(self.stem_norm(self.stem(x), train))
        if self.config.stem == "imagenet":
            x = max_pool(x, 3, 2, padding=1)
        return x

    def dropped(self, index: int) -> list[Dropped]:
        """For each block of a stage. Not in the blocks themselves, whose structure would differ."""
        counts, blocks = BLOCKS[self.config.depth], len(self.stages[index])
        if not self.config.drop_path:
            return [()] * blocks
        first = 1 + sum(counts[:index])
        return [(self.config.drop_path * number / sum(counts), number) for number in range(first, first + blocks)]

    def stage(self, index: int, x: Float[Array, "b h w c"], train: bool,
              keys: Keys = None) -> Float[Array, "b h2 w2 c2"]:
        for block, dropped in zip(self.stages[index], self.dropped(index), strict=True):
            x = run_block(block, x, keys, dropped, train=train)
        return x
