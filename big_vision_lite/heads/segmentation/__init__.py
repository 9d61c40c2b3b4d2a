"""Semantic segmentation with the decoders of the DeepLab family on any backbone."""

from big_vision_lite.heads.segmentation.decoders import ASPPL, DeepLabV3, DeepLabV3Plus
from big_vision_lite.heads.segmentation.head import Segmentation, dilated

__all__ = ["ASPPL", "DeepLabV3", "DeepLabV3Plus", "Segmentation", "dilated"]
