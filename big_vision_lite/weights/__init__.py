"""Weights in and out: torchvision, timm, BiT and safetensors."""

import json
from pathlib import Path

from big_vision_lite.backbones.backbone import Pixels
from big_vision_lite.data.cache import cache_dir
from big_vision_lite.weights.convert import from_bit, from_torchvision, load, to_bit, to_torchvision
from big_vision_lite.weights.download import fetch, is_remote
from big_vision_lite.weights.files import read_file, read_metadata, write_safetensors
from big_vision_lite.weights.naming import NAMINGS, TORCHVISION, depth_of

TORCHVISION_PIXELS = Pixels(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""What torchvision's weights, and nearly all of timm's ResNets, expect: 255 times the mean and deviation of ImageNet.
BiT's expect the default, [-1, 1]."""


def pixels_of(source: str) -> Pixels | None:
    """What a file of weights expects of pixels: as noted there, or as is usual for its naming; None if neither tells.

    Raises:
      UserError: as `load`.
    """
    path = fetch(source, cache_dir() / "weights") if is_remote(source) else Path(source).expanduser()
    noted = read_metadata(path).get("pixels")
    if noted is not None:
        mean, std = json.loads(noted)
        return Pixels(tuple(mean), tuple(std))
    naming = next((naming for naming in NAMINGS if naming.recognises(read_file(path))), None)
    return None if naming is None else TORCHVISION_PIXELS if naming is TORCHVISION else Pixels()


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
