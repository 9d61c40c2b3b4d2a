"""Weights in and out: torchvision, timm, BiT and safetensors."""

from big_vision_lite.backbones.backbone import Pixels
from big_vision_lite.weights.convert import from_bit, from_torchvision, load, to_bit, to_torchvision
from big_vision_lite.weights.download import fetch
from big_vision_lite.weights.files import read_file, read_metadata, write_safetensors
from big_vision_lite.weights.naming import depth_of

TORCHVISION_PIXELS = Pixels(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""What torchvision's weights, and nearly all of timm's ResNets, expect: 255 times the mean and deviation of ImageNet.
BiT's expect the default, [-1, 1]."""

__all__ = ["TORCHVISION_PIXELS", "depth_of", "fetch", "from_bit", "from_torchvision", "load", "read_file",
           "read_metadata", "to_bit", "to_torchvision", "write_safetensors"]
