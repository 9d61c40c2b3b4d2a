"""Weights in and out: torchvision, timm, BiT and safetensors."""

import json

from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.weights.convert import from_bit, from_torchvision, load, to_bit, to_torchvision
from big_vision_lite.weights.download import fetch
from big_vision_lite.weights.files import read_file, read_metadata, write_safetensors
from big_vision_lite.weights.naming import NAMINGS, TORCHVISION, depth_of

TORCHVISION_PIXELS = PixelNormalization(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""The normalisation of torchvision's weights, and of nearly all of timm's ResNets: 255 times ImageNet's mean and
standard deviation. BiT's is the default, [-1, 1]."""


def pixels_of(source: str) -> PixelNormalization | None:
    """The pixel normalisation of a weights file: as its metadata says, or as usual for its naming; None if unknown.

    Raises:
      UserError: as `load`.
    """
    path = fetch(source)
    pixels = read_metadata(path).get("pixels")
    if pixels is not None:
        mean, std = json.loads(pixels)
        return PixelNormalization(tuple(mean), tuple(std))
    tensors = read_file(path)
    naming = next((naming for naming in NAMINGS if naming.matches(tensors)), None)
    return None if naming is None else TORCHVISION_PIXELS if naming is TORCHVISION else PixelNormalization()


__all__ = [
    "TORCHVISION_PIXELS",
    "depth_of",
    "fetch",
    "from_bit",
    "from_torchvision",
    "load",
    "pixels_of",
    "read_file",
    "read_metadata",
    "to_bit",
    "to_torchvision",
    "write_safetensors",
]
