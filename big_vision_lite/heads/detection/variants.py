"""The two detectors: C4, whose second stage is the backbone's last, and FPN, with maps at every stride."""

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

from big_vision_lite.backbones.backbone import BackboneModule, Keys
from big_vision_lite.backbones.fpn import FeaturePyramid
from big_vision_lite.errors import UserError
from big_vision_lite.heads.detection.box_head import BoxMLP, BoxPredictor
from big_vision_lite.heads.detection.roi_align import roi_align
from big_vision_lite.heads.detection.rpn import RPN
from big_vision_lite.system.fields import at_least

Maps = tuple[Float[Array, "b _ _ d"], ...]
_COUNTS = ("pre_nms_topk", "post_nms_topk", "rois_per_image", "pooler_resolution")


class Detector(nnx.Module):
    """The parts of a built detector, which `FasterRCNN` puts together.

    Attributes:
      strides: pixels per cell of each map that proposals come from.
      sizes: sides of the anchors of each map, in pixels.
    """

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    backbone: BackboneModule
    rpn: RPN

    @abc.abstractmethod
    def maps(self, images: UInt8[Array, "b h w 3"], train: bool, keys: Keys = None) -> Maps:
        """The maps that proposals come from, finest first."""

    @abc.abstractmethod
    def classify(self, maps: Maps, rois: Float[Array, "b r 4"], train: bool,
                 keys: Keys = None) -> tuple[Float[Array, "b r k"], Float[Array, "b r c 4"]]:
        """For each box, logits of background and the classes, and offsets for each class."""


@dataclasses.dataclass(frozen=True)
class C4:
    """The paper's detector: proposals from res4, and res5 on the res4 features of each box (He et al. 2015).

    With a backbone of output_stride 16 or 8, res5 does not stride; set ``pooler_resolution`` to 7. Batch statistics in
    res5 are taken over the boxes of all images, and `BatchNorm.group` counts boxes.
    """

    rpn_channels: int = 512
    """Channels of the RPN's hidden layer (512 in Huang et al.'s code, 1024 in detectron2)."""
    anchor_sizes: tuple[float, ...] | None = None
    """Sides in pixels, all of them at each cell; None: 8, 16, 32, 64 and 128 times the stride of res2, 32 to 512."""
    pre_nms_topk: tuple[int, int] = (6000, 6000)
    """Best anchors that enter non-maximum suppression, in training and in evaluation."""
    post_nms_topk: tuple[int, int] = (300, 300)
    """Proposals kept, in training and in evaluation."""
    rois_per_image: int = 64
    """Boxes per image that the second stage learns from (detectron2: 512)."""
    pooler_resolution: int = 14
    """Bins per side of a box's features; res5's stride halves them."""
    aligned: bool = True
    """See `roi_align`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the RPN's convolutions. Boxes, scores and losses are always float32."""

    def __post_init__(self) -> None:
        at_least(self, 1, "rpn_channels", "anchor_sizes", *_COUNTS)

    def build(self, backbone: BackboneModule, num_classes: int, num_ratios: int, rngs: nnx.Rngs) -> Detector:
        return C4Module(self, backbone, num_classes, num_ratios, rngs)


class C4Module(Detector):
    def __init__(self, config: C4, backbone: BackboneModule, num_classes: int, num_ratios: int, rngs: nnx.Rngs):
        self.config, self.backbone = config, backbone
        self.strides = (backbone.strides[2],)
        self.sizes = (config.anchor_sizes or _sizes(backbone),)
        self.rpn = RPN(backbone.channels[2], config.rpn_channels, num_ratios * len(self.sizes[0]),
                       jnp.dtype(config.dtype), rngs)
        self.predictor = BoxPredictor(backbone.channels[3], num_classes, rngs)

    def maps(self, images: UInt8[Array, "b h w 3"], train: bool, keys: Keys = None) -> Maps:
        x = self.backbone.begin(images, train)
        for index in range(3):
            x = self.backbone.stage(index, x, train, keys)
        return (x,)

    def classify(self, maps: Maps, rois: Float[Array, "b r 4"], train: bool,
                 keys: Keys = None) -> tuple[Float[Array, "b r k"], Float[Array, "b r c 4"]]:
        config, (batch, count, _) = self.config, rois.shape
        x = roi_align(maps, rois, self.strides, config.pooler_resolution, config.aligned)
        keys = None if keys is None else jnp.repeat(keys, count, axis=0)
        x = self.backbone.stage(3, x.reshape(-1, *x.shape[2:]), train, keys)
        return self.predictor(x.astype(jnp.float32).mean((1, 2)).reshape(batch, count, -1))


@dataclasses.dataclass(frozen=True)
class FPN:
    """Feature pyramid and two fully connected layers (Lin et al. 2017)."""

    channels: int = 256
    """Channels of each map and of the RPN's hidden layer."""
    width: int = 1024
    """Width of the two fully connected layers."""
    anchor_sizes: tuple[float, ...] | None = None
    """Sides in pixels, one per map, finest first; None: 8 times the map's stride, 32 at P2."""
    pre_nms_topk: tuple[int, int] = (2000, 1000)
    """Best anchors per map that enter non-maximum suppression, in training and in evaluation."""
    post_nms_topk: tuple[int, int] = (1000, 1000)
    """Proposals kept over all maps, in training and in evaluation."""
    rois_per_image: int = 512
    """Boxes per image that the second stage learns from."""
    pooler_resolution: int = 7
    """Bins per side of a box's features."""
    aligned: bool = True
    """See `roi_align`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the pyramid, the RPN and the fully connected layers. Boxes, scores and losses are always float32."""

    def __post_init__(self) -> None:
        at_least(self, 1, "channels", "width", "anchor_sizes", *_COUNTS)

    def build(self, backbone: BackboneModule, num_classes: int, num_ratios: int, rngs: nnx.Rngs) -> Detector:
        """Raises: UserError when the backbone's strides do not double, or sizes and maps differ in number."""
        strides = backbone.strides
        if any(b != 2 * a for a, b in itertools.pairwise(strides)):
            raise UserError(f"FPN: the backbone's strides are {strides}; expected each to be twice the one before: "
                            "set its output_stride to 32")
        if self.anchor_sizes is not None and len(self.anchor_sizes) != 5:
            raise UserError(f"FPN: {len(self.anchor_sizes)} anchor_sizes; expected one for each of P2 to P6, 5")
        return FPNModule(self, backbone, num_classes, num_ratios, rngs)


class FPNModule(Detector):
    def __init__(self, config: FPN, backbone: BackboneModule, num_classes: int, num_ratios: int, rngs: nnx.Rngs):
        self.config, self.backbone = config, backbone
        dtype = jnp.dtype(config.dtype)
        self.strides = (*backbone.strides, 2 * backbone.strides[-1])
        self.sizes = tuple((float(size),) for size in config.anchor_sizes or _sizes(backbone))
        self.fpn = FeaturePyramid(backbone.channels, config.channels, dtype, rngs)
        self.rpn = RPN(config.channels, config.channels, num_ratios, dtype, rngs)
        self.box_head = BoxMLP(config.pooler_resolution**2, config.channels, config.width, dtype, rngs)
        self.predictor = BoxPredictor(config.width, num_classes, rngs)

    def maps(self, images: UInt8[Array, "b h w 3"], train: bool, keys: Keys = None) -> Maps:
        return self.fpn(self.backbone(images, train, keys))

    def classify(self, maps: Maps, rois: Float[Array, "b r 4"], train: bool,
                 keys: Keys = None) -> tuple[Float[Array, "b r k"], Float[Array, "b r c 4"]]:
        config, (batch, count, _) = self.config, rois.shape
        x = roi_align(maps[:-1], rois, self.strides[:-1], config.pooler_resolution, config.aligned)
        x = self.box_head(x.reshape(-1, *x.shape[2:]))
        return self.predictor(x.reshape(batch, count, -1))


def _sizes(backbone: BackboneModule) -> Sequence[float]:
    """Sides of anchors: 32 to 512 for the ImageNet stem, proportionally smaller for finer maps."""
    return tuple(8.0 * backbone.strides[0] * 2**i for i in range(5))
