"""BiT's ResNet-v2 (Kolesnikov et al. 2020): pre-activation, GroupNorm and weight standardisation, no batch statistics.

The arithmetic of BiT's published weights: stride in the 3x3 convolution, and a stem that pads with zeros before its
convolution (3 pixels) and before max-pooling (1 pixel).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.backbones.backbone import Backbone, BackboneModule, Keys, ModuleList, PixelNormalization
from big_vision_lite.backbones.conv import same_conv
from big_vision_lite.backbones.norm import GroupNorm, StandardizedConv
from big_vision_lite.backbones.pool import max_pool
from big_vision_lite.backbones.repeated import run_block
from big_vision_lite.backbones.resnet import BLOCKS
from big_vision_lite.errors import UserError

DEPTHS = (50, 101, 152, 200)


@dataclasses.dataclass(frozen=True)
class ResNetV2(Backbone):
    """A pre-activation residual network of bottlenecks. BiT-S, -M and -L are R50x1, R50x3, R101x1, R101x3, R152x2 and
    R152x4: R ``depth`` x ``width``. Raises: UserError for a field out of range."""

    depth: Literal[50, 101, 152, 200] = 50
    """Layers."""
    width: float = 1.0
    """Factor on the channels of every layer."""
    norm: GroupNorm = GroupNorm()
    """BiT's has 32 groups."""
    pixels: PixelNormalization = PixelNormalization()
    """How uint8 pixels become the network's input. BiT's is the default, [-1, 1]."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the convolutions. Parameters are always float32."""

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise UserError(f"ResNetV2: depth={self.depth}; expected one of {', '.join(map(str, DEPTHS))}")
        channels = round(64 * self.width)
        if channels < 1 or channels % self.norm.groups:
            raise UserError(f"ResNetV2: width={self.width} makes {channels} channels; expected a multiple of "
                            f"norm.groups={self.norm.groups}")

    def build(self, rngs: nnx.Rngs) -> ResNetV2Module:
        return ResNetV2Module(self, rngs)


def _conv(config: ResNetV2, rngs: nnx.Rngs) -> Callable[..., nnx.Conv]:
    # Never zeros: the derivative of standardisation is 1e5 there.
    init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    return partial(same_conv, kernel_init=init, dtype=jnp.dtype(config.dtype), rngs=rngs, use_bias=False,
                   kind=StandardizedConv)


def _norm(config: ResNetV2, channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=config.norm.groups, epsilon=config.norm.epsilon,
                         dtype=jnp.dtype(config.dtype), rngs=rngs)


class PreActivationBlock(nnx.Module):
    """The bottleneck 1x1, 3x3, 1x1, with a norm and ReLU before each convolution. A projected shortcut sees the
    first norm's output."""

    def __init__(self, config: ResNetV2, inputs: int, channels: int, stride: int, rngs: nnx.Rngs):
        conv, norm, outputs = _conv(config, rngs), partial(_norm, config, rngs=rngs), 4 * channels
        self.norm1, self.conv1 = norm(inputs), conv(inputs, channels, 1)
        self.norm2, self.conv2 = norm(channels), conv(channels, channels, 3, stride=stride)
        self.norm3, self.conv3 = norm(channels), conv(channels, outputs, 1)
        self.project = stride != 1 or inputs != outputs
        if self.project:
            self.shortcut = conv(inputs, outputs, 1, stride=stride)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        y = nnx.relu(self.norm1(x))
        if self.project:
            x = self.shortcut(y)
        y = self.conv1(y)
        y = self.conv2(nnx.relu(self.norm2(y)))
        y = self.conv3(nnx.relu(self.norm3(y)))
        return x + y


class ResNetV2Module(BackboneModule):
    """A built ResNet-v2. Its last stage ends in the final norm and ReLU, as BiT pools it for its classifier; the other
    three return their sums as they are."""

    def __init__(self, config: ResNetV2, rngs: nnx.Rngs):
        self.config = config
        base = [round(64 * config.width) * 2**i for i in range(4)]
        self.stem = _conv(config, rngs)(3, base[0], 7, stride=2)
        channels, stages = base[0], []
        for i, (count, width) in enumerate(zip(BLOCKS[config.depth], base, strict=True)):
            blocks = []
            for j in range(count):
                blocks.append(PreActivationBlock(config, channels, width, 2 if i > 0 and j == 0 else 1, rngs))
                channels = 4 * width
            stages.append(ModuleList(blocks))
        self.stages = ModuleList(stages)
        self.norm = _norm(config, channels, rngs)
        self.channels = tuple(4 * width for width in base)
        self.strides = (4, 8, 16, 32)

    def begin(self, images: UInt8[Array, "b h w 3"], train: bool) -> Float[Array, "b h2 w2 c"]:
        x = self.stem(self.config.pixels.normalize(images))
        # The stem's output has no ReLU yet, so zeros at the border are not what max-pooling would pad with.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return max_pool(x, 3, 2)

    def stage(self, index: int, x: Float[Array, "b h w c"], train: bool,
              keys: Keys = None) -> Float[Array, "b h2 w2 c2"]:
        for block in self.stages[index]:
            x = run_block(block, x, train=train)
        return nnx.relu(self.norm(x)) if index == 3 else x
