"""Anchors: boxes of fixed sizes and aspect ratios around every cell of a feature map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def grid_anchors(height: int, width: int, stride: int, sizes: Sequence[float],
                 aspect_ratios: Sequence[float]) -> np.ndarray:
    """float32 ``[height * width * len(aspect_ratios) * len(sizes), 4]``: (x1, y1, x2, y2) in pixels of the image, by
    row, column, aspect ratio and size.

    They are centred on the top left corner of each cell, where a strided convolution with symmetric padding has its
    centre, with corners at whole pixels, as in py-faster-rcnn (Girshick) and torchvision.

    Args:
      height, width: of the feature map.
      stride: pixels per cell.
      sizes: square roots of the anchors' areas, in pixels.
      aspect_ratios: height / width.
    """
    stretch = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    sides = np.asarray(sizes, np.float32)
    half = np.stack([(sides / stretch).ravel(), (sides * stretch).ravel()], -1) / 2
    at_origin = np.round(np.concatenate([-half, half], -1))
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    shifts = np.stack([x, y, x, y], -1).astype(np.float32).reshape(-1, 1, 4)
    return (shifts + at_origin).reshape(-1, 4).astype(np.float32)
