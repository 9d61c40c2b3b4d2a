"""Anchors: the boxes of fixed sizes and aspects, around every cell of a feature map, that an RPN starts from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def grid_anchors(height: int, width: int, stride: int, sizes: Sequence[float], aspects: Sequence[float]) -> np.ndarray:
    """float32 ``[height * width * len(aspects) * len(sizes), 4]``: (x1, y1, x2, y2) in pixels of the image, by row,
    column, aspect and size.

    They are centred on the top left corner of each cell, where the centre of a strided convolution with symmetric
    padding is, and reach whole pixels from there, as in Girshick's py-faster-rcnn and torchvision.

    Args:
      height, width: of the feature map.
      stride: pixels a cell.
      sizes: square roots of the anchors' areas, in pixels.
      aspects: height / width.
    """
    tall = np.sqrt(np.asarray(aspects, np.float32))[:, None]
    sides = np.asarray(sizes, np.float32)
    half = np.stack([(sides / tall).ravel(), (sides * tall).ravel()], -1) / 2
    cell = np.round(np.concatenate([-half, half], -1))
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    shifts = np.stack([x, y, x, y], -1).astype(np.float32).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4).astype(np.float32)
