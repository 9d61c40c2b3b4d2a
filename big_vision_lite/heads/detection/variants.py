"""The two detectors: C4, whose second stage is the backbone's last, and FPN, with maps of every stride."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.backbones.backbone import Features
from big_vision_lite.backbones.fpn import FeaturePyramid
from big_vision_lite.errors import UserError
from big_vision_lite.heads.detection.box_head import Predictor, TwoLayers
from big_vision_lite.heads.detection.roi_align import Method, roi_align
from big_vision_lite.heads.detection.rpn import RPN

Maps = tuple[Float[Array, "b _ _ d"], ...]


class Detector(nnx.Module):
    """A built detector: its parts, to be put together by `FasterRCNN`.

    Attributes:
      strides: pixels a cell of each map that proposals come from.
      sizes: sides of the anchors of each map, in pixels.
    """

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    backbone: Features
    rpn: RPN

    @abc.abstractmethod
    def maps(self, images: UInt8[Array, "b h w 3"], train: bool) -> Maps:
        """What proposals come from, finest first."""

    @abc.abstractmethod
    def classify(self, maps: Maps, rois: Float[Array, "b r 4"],
                 train: bool) -> tuple[Float[Array, "b r k"], Float[Array, "b r c 4"]]:
        """Logits of background and the classes for each box, and its offsets for each class."""


@dataclasses.dataclass(frozen=True)
class C4:
    """The paper's detector: proposals from res4, whose features of each box go through res5 (He et al. 2015).

    A backbone of output_stride 16 or 8 keeps the resolution in res5; set ``pool`` to 7 there. Where res5's BatchNorm
    uses batch statistics, they are over the boxes of all images, and `BatchNorm.group` counts boxes.
    """

    rpn_channels: int = 512
    """Of the RPN's hidden layer (512 in Huang et al.'s code, 1024 in detectron2)."""
    anchor_sizes: tuple[float, ...] | None = None
    """Sides in pixels, all at every cell; None: 8, 16, 32, 64 and 128 times the stride of res2, 32 to 512."""
    candidates: tuple[int, int] = (6000, 6000)
    """Best anchors that non-maximum suppression looks at, in training and in evaluation."""
    proposals: tuple[int, int] = (300, 300)
    """What it leaves at most, in training and in evaluation."""
    rois: int = 64
    """Boxes an image that the second stage learns from (detectron2: 512)."""
    pool: int = 14
    """Bins a side of a box's features; half as many after res5's stride."""
    aligned: bool = True
    """See `roi_align`."""
    method: Method = "auto"
    """See `roi_align`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the RPN's convolutions compute in. Boxes, scores and losses are float32 always."""

    def build(self, backbone: Features, classes: int, aspects: int, rngs: nnx.Rngs) -> Detector:
        """Raises: UserError when the backbone does not run by stages."""
        if type(backbone).stage is Features.stage:
            raise UserError(f"C4 runs a backbone's last stage on boxes, and {type(backbone).__name__} runs only as a "
                            "whole; take a ResNet, or FPN()")
        return C4Module(self, backbone, classes, aspects, rngs)


class C4Module(Detector):
    """C4, built."""

    def __init__(self, config: C4, backbone: Features, classes: int, aspects: int, rngs: nnx.Rngs):
        self.config, self.backbone = config, backbone
        self.strides = (backbone.strides[2],)
        self.sizes = (config.anchor_sizes or _sizes(backbone),)
        self.rpn = RPN(backbone.channels[2], config.rpn_channels, aspects * len(self.sizes[0]),
                       jnp.dtype(config.dtype), rngs)
        self.predictor = Predictor(backbone.channels[3], classes, rngs)

    def maps(self, images: UInt8[Array, "b h w 3"], train: bool) -> Maps:
        return (self.backbone(images, train, stages=3)[2],)

    def classify(self, maps: Maps, rois: Float[Array, "b r 4"],
                 train: bool) -> tuple[Float[Array, "b r k"], Float[Array, "b r c 4"]]:
        config, (batch, count, _) = self.config, rois.shape
        x = roi_align(maps, rois, self.strides, config.pool, config.aligned, config.method)
        x = self.backbone.stage(3, x.reshape(-1, *x.shape[2:]), train)
        return self.predictor(x.astype(jnp.float32).mean((1, 2)).reshape(batch, count, -1))


@dataclasses.dataclass(frozen=True)
class FPN:
    """Feature pyramid and two fully connected layers (Lin et al. 2017)."""

    channels: int = 256
    """Of every map, and of the RPN's hidden layer."""
    width: int = 1024
    """Of the two fully connected layers."""
    finest: Literal[2, 3] = 2
    """The first map is P2 or P3. Without P2 most of the work on large maps is gone, and some small objects."""
    anchor_sizes: tuple[float, ...] | None = None
    """Sides in pixels, one for each map from the finest; None: 8 times the map's stride, 32 at P2."""
    candidates: tuple[int, int] = (2000, 1000)
    """Best anchors of each map that non-maximum suppression looks at, in training and in evaluation."""
    proposals: tuple[int, int] = (1000, 1000)
    """What it leaves at most over all maps, in training and in evaluation."""
    rois: int = 512
    """Boxes an image that the second stage learns from."""
    pool: int = 7
    """Bins a side of a box's features."""
    aligned: bool = True
    """See `roi_align`."""
    method: Method = "auto"
    """See `roi_align`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What pyramid, RPN and fully connected layers compute in. Boxes, scores and losses are float32 always."""

    def build(self, backbone: Features, classes: int, aspects: int, rngs: nnx.Rngs) -> Detector:
        """Raises: UserError when the backbone's strides do not double, or sizes and maps differ in number."""
        strides = backbone.strides
        if any(b != 2 * a for a, b in itertools.pairwise(strides)):
            raise UserError(f"FPN: the backbone's strides are {strides}; expected each to be twice the one before: "
                            "set its output_stride to 32")
        levels = 7 - self.finest
        if self.anchor_sizes is not None and len(self.anchor_sizes) != levels:
            raise UserError(f"FPN: {len(self.anchor_sizes)} anchor_sizes; expected one for each of P{self.finest} to "
                            f"P6, {levels}")
        return FPNModule(self, backbone, classes, aspects, rngs)


class FPNModule(Detector):
    """FPN, built."""

    def __init__(self, config: FPN, backbone: Features, classes: int, aspects: int, rngs: nnx.Rngs):
        self.config, self.backbone = config, backbone
        dtype, first = jnp.dtype(config.dtype), config.finest - 2
        self.strides = (*backbone.strides[first:], 2 * backbone.strides[-1])
        self.sizes = tuple((float(size),) for size in config.anchor_sizes or _sizes(backbone)[first:])
        self.fpn = FeaturePyramid(backbone.channels[first:], config.channels, dtype, rngs)
        self.rpn = RPN(config.channels, config.channels, aspects, dtype, rngs)
        self.box_head = TwoLayers(config.pool**2, config.channels, config.width, dtype, rngs)
        self.predictor = Predictor(config.width, classes, rngs)

    def maps(self, images: UInt8[Array, "b h w 3"], train: bool) -> Maps:
        return self.fpn(self.backbone(images, train)[self.config.finest - 2:])

    def classify(self, maps: Maps, rois: Float[Array, "b r 4"],
                 train: bool) -> tuple[Float[Array, "b r k"], Float[Array, "b r c 4"]]:
        config, (batch, count, _) = self.config, rois.shape
        x = roi_align(maps[:-1], rois, self.strides[:-1], config.pool, config.aligned, config.method)
        x = self.box_head(x.reshape(-1, *x.shape[2:]))
        return self.predictor(x.reshape(batch, count, -1))


def _sizes(backbone: Features) -> Sequence[float]:
    """32 to 512 for the ImageNet stem, and as much less as another stem has finer maps."""
    return tuple(8.0 * backbone.strides[0] * 2**i for i in range(5))
