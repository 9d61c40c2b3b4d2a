"""Names and layouts of ResNets' arrays elsewhere: torchvision and timm, BiT's .npz files, timm's BiT.

Our names are those of a checkpoint without their first part (``backbone.stem.kernel``, ``head.bias``); our kernels are
(height, width, inputs, outputs).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.backbones.resnet import BLOCKS


@dataclasses.dataclass(frozen=True)
class Layout:
    """The conversion of an array from another layout to ours, and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]
    dimensions: tuple[int, ...]
    """Possible numbers of dimensions in the other layout."""


SAME = Layout(lambda x: x, lambda x: x, (1, 4))
OIHW = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), (4,))
OI = Layout(lambda x: x.T, lambda x: x.T, (2,))
OI11 = Layout(lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T[:, :, None, None], (2, 4))
ONE_BY_ONE = Layout(lambda x: x.reshape(x.shape[-2:]), lambda x: x[None, None], (2, 4))

Row = tuple[str, str, Layout]
"""Their name, our name, and their layout."""


@dataclasses.dataclass(frozen=True)
class Naming:
    """One project's names for one family of networks."""

    title: str
    """What messages call the files that use these names."""
    family: str
    """The networks: "BatchNorm ResNet" or "ResNetV2"."""
    rows: Callable[[int], Iterator[Row]]
    """All names of the network of a depth."""
    block: re.Pattern
    """Matches the name of a convolution; its groups are stage, block and convolution."""
    first: int
    """Number of the first stage."""
    third: str
    """Name of the third convolution of a bottleneck."""
    pixels: PixelNormalization = PixelNormalization()
    """The normalization that such weights expect, unless their file says otherwise."""
    ignored: str = r"(?!)"
    """Pattern of names that are not needed here."""
    architectures: str = r".*"
    """Pattern of the architectures that such a network may say to be: others have the same names, but do not compute
    the same, such as timm's resnetaa50, which pools against aliasing."""

    def depth_of(self, names: Iterable[str]) -> int | None:
        """Layers of the network with these names; None if there is no such ResNet."""
        return _depth(names, self.block, self.first, self.third)


_OURS = re.compile(r"backbone\.stages\.(\d+)\.(\d+)\.(conv\d)\.kernel")


def naming_of(names: Iterable[str]) -> Naming | None:
    """The naming of another project that these names follow; None for ours and unknown ones."""
    return next((naming for naming in NAMINGS if any(naming.block.match(name) for name in names)), None)


def depth_of(names: Iterable[str]) -> int | None:
    """Layers of the network with these names, in any known naming; None if no such ResNet can be built here."""
    names = list(names)
    naming = naming_of(names)
    return _depth(names, _OURS, 0, "conv3") if naming is None else naming.depth_of(names)


def _depth(names: Iterable[str], block: re.Pattern, first: int, third: str) -> int | None:
    convolutions = [match.groups() for match in map(block.match, names) if match]
    blocks = {(int(stage) - first, index) for stage, index, _ in convolutions}
    counts = tuple(sum(stage == i for stage, _ in blocks) for i in range(4))
    bottleneck = any(convolution == third for _, _, convolution in convolutions)
    return next((depth for depth in BLOCKS if BLOCKS[depth] == counts and (depth >= 50) == bottleneck), None)


def _blocks(depth: int) -> Iterator[tuple[int, int, int, bool]]:
    """(stage, block, number of convolutions, whether the shortcut is projected), counted from 0."""
    for i, count in enumerate(BLOCKS[depth]):
        for j in range(count):
            yield i, j, 3 if depth >= 50 else 2, j == 0 and (i > 0 or depth >= 50)


def _torchvision(depth: int) -> Iterator[Row]:
    def norm(theirs: str, ours: str) -> Iterator[Row]:
        for a, b in (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var")):
            yield f"{theirs}.{a}", f"{ours}.{b}", SAME

    yield "conv1.weight", "backbone.stem.kernel", OIHW
    yield from norm("bn1", "backbone.stem_norm")
    for i, j, convolutions, project in _blocks(depth):
        theirs, ours = f"layer{i + 1}.{j}", f"backbone.stages.{i}.{j}"
        for k in range(1, convolutions + 1):
            yield f"{theirs}.conv{k}.weight", f"{ours}.conv{k}.kernel", OIHW
            yield from norm(f"{theirs}.bn{k}", f"{ours}.norm{k}")
        if project:
            yield f"{theirs}.downsample.0.weight", f"{ours}.shortcut.kernel", OIHW
            yield from norm(f"{theirs}.downsample.1", f"{ours}.shortcut_norm")
    yield "fc.weight", "head.kernel", OI
    yield "fc.bias", "head.bias", SAME


def _bit(depth: int) -> Iterator[Row]:
    def norm(theirs: str, ours: str) -> Iterator[Row]:
        yield f"resnet/{theirs}/group_norm/gamma", f"backbone.{ours}.scale", SAME
        yield f"resnet/{theirs}/group_norm/beta", f"backbone.{ours}.bias", SAME

    def conv(theirs: str, ours: str) -> Row:
        return f"resnet/{theirs}/standardized_conv2d/kernel", f"backbone.{ours}.kernel", SAME

    yield conv("root_block", "stem")
    for i, j, _, project in _blocks(depth):
        theirs, ours = f"block{i + 1}/unit{j + 1:02d}", f"stages.{i}.{j}"
        for k, letter in enumerate("abc", 1):
            yield from norm(f"{theirs}/{letter}", f"{ours}.norm{k}")
            yield conv(f"{theirs}/{letter}", f"{ours}.conv{k}")
        if project:
            yield conv(f"{theirs}/a/proj", f"{ours}.shortcut")
    yield "resnet/group_norm/gamma", "backbone.norm.scale", SAME
    yield "resnet/group_norm/beta", "backbone.norm.bias", SAME
    yield "resnet/head/conv2d/kernel", "head.kernel", ONE_BY_ONE
    yield "resnet/head/conv2d/bias", "head.bias", SAME


def _timm_bit(depth: int) -> Iterator[Row]:
    def norm(theirs: str, ours: str) -> Iterator[Row]:
        yield f"{theirs}.weight", f"backbone.{ours}.scale", SAME
        yield f"{theirs}.bias", f"backbone.{ours}.bias", SAME

    yield "stem.conv.weight", "backbone.stem.kernel", OIHW
    for i, j, convolutions, project in _blocks(depth):
        theirs, ours = f"stages.{i}.blocks.{j}", f"stages.{i}.{j}"
        for k in range(1, convolutions + 1):
            yield from norm(f"{theirs}.norm{k}", f"{ours}.norm{k}")
            yield f"{theirs}.conv{k}.weight", f"backbone.{ours}.conv{k}.kernel", OIHW
        if project:
            yield f"{theirs}.downsample.conv.weight", f"backbone.{ours}.shortcut.kernel", OIHW
    yield from norm("norm", "norm")
    yield "head.fc.weight", "head.kernel", OI11
    yield "head.fc.bias", "head.bias", SAME


IMAGENET = PixelNormalization(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""255 times ImageNet's mean and standard deviation: what torchvision and nearly all of timm's ResNets expect."""
TORCHVISION = Naming("torchvision or timm ResNet", "BatchNorm ResNet", _torchvision,
                     re.compile(r"layer(\d+)\.(\d+)\.(conv\d)\.weight"), 1, "conv3", IMAGENET,
                     r".*\.num_batches_tracked|n_averaged",
                     r"((tv|gluon|ssl|swsl|ig)_)?(wide_)?resnet[-_]?\d+(_2|_v1b)?")
BIT = Naming("BiT ResNet-v2", "ResNetV2", _bit,
             re.compile(r"resnet/block(\d+)/unit(\d+)/([abc])/standardized_conv2d/kernel"), 1, "c")
TIMM_BIT = Naming("timm ResNet-v2", "ResNetV2", _timm_bit,
                  re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.(conv\d)\.weight"), 0, "conv3",
                  architectures=r"resnetv2_\d+x\d+_bit\w*")
NAMINGS = (TORCHVISION, BIT, TIMM_BIT)
