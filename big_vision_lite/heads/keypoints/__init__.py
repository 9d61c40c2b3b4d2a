"""Keypoints of one object at a time (top-down pose estimation), on any backbone."""

from big_vision_lite.heads.keypoints.disks import DiskOffsets
from big_vision_lite.heads.keypoints.gaussians import GaussianHeatmaps
from big_vision_lite.heads.keypoints.head import TopDown

__all__ = ["DiskOffsets", "GaussianHeatmaps", "TopDown"]
