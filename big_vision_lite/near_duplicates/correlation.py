"""Whether two images show the same thing: the correlation of their details, also if one is a crop of the other.

A 64-bit hash finds candidates; most natural photos that are 9 to 14 bits apart differ, and merely share a bright sky
above dark ground. So smooth parts are removed first. Then whole images and windows of 95 % and 90 % of their sides at
25 positions are compared, which needs no network: a crop correlates about as well as a copy.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

SIDE = 64
"""Pixels of the thumbnails' sides."""
SMOOTH = 8.0
"""Standard deviation, in pixels of thumbnails, of the blur that separates smooth parts from details."""
COARSE, FINE = (16, 3), (32, 5)
"""Pixels of the windows' sides, and positions of a window in each direction, from one end to the other. The coarse
comparison costs a tenth of the fine one, which runs only for pairs that pass it."""
WINDOWS = (0.95, 0.9)
"""Sides of the windows, as shares of the image's."""
NOISE = 0.25
"""Grey levels of 255: details as faint as this have no weight."""
SCREEN = 0.2
"""By how much a coarse correlation may miss the threshold without ruling out the fine comparison."""


def correlation(left: np.ndarray, right: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """The largest correlation of either whole image with the other and with the windows of the other.

    Args:
      left, right: uint8 ``[n, 64, 64]``, grey.
      threshold: pairs with a coarse correlation below this by `SCREEN` get no fine comparison.

    Returns:
      float32 ``[n]`` up to 1; about 0 where an image has no details.
    """
    correlations = np.empty(len(left), np.float32)
    for start in range(0, len(left), 64):
        a, b = (_details(side[start : start + 64]) for side in (left, right))
        best = _best(a, b, *COARSE)
        close = np.flatnonzero(best >= threshold - SCREEN)
        if len(close):
            best[close] = _best(a[close], b[close], *FINE)
        correlations[start : start + 64] = best
    return correlations


def _details(grey: np.ndarray) -> np.ndarray:
    """float32 ``[n, 64, 64]``, without smooth parts."""
    return np.stack([image - cv2.GaussianBlur(image, (0, 0), SMOOTH) for image in grey.astype(np.float32)])


def _best(left: np.ndarray, right: np.ndarray, cells: int, positions: int) -> np.ndarray:
    a, b = (_windows(side, cells, positions) for side in (left, right))
    a_in_b, b_in_a = (np.matmul(windows, whole[:, 0, :, None]).max(axis=(1, 2)) for windows, whole in ((a, b), (b, a)))
    return np.maximum(a_in_b, b_in_a)


def _windows(details: np.ndarray, cells: int, positions: int) -> np.ndarray:
    """float32 ``[n, 1 + 2 * positions ** 2, cells ** 2]``: each whole image, then its windows, with mean 0 and norm
    nearly 1."""
    resampled = []
    for count, rows in _resampling(cells, positions):
        across = details.reshape(-1, SIDE) @ rows.T  # large products are fast; [n * 64, positions * cells]
        across = across.reshape(len(details), SIDE, len(rows)).transpose(0, 2, 1).reshape(-1, SIDE)
        both = (across @ rows.T).reshape(len(details), count, cells, count, cells)
        resampled.append(both.transpose(0, 3, 1, 4, 2).reshape(len(details), count * count, cells * cells))
    windows = np.concatenate(resampled, axis=1)
    windows -= windows.mean(axis=2, keepdims=True)
    windows /= np.sqrt(np.einsum("nvc,nvc->nv", windows, windows))[..., None] + NOISE * cells
    return windows


@functools.cache
def _resampling(cells: int, positions: int) -> list[tuple[int, np.ndarray]]:
    """Of whole images and windows of each size: positions per direction, and float32 ``[positions * cells, 64]``."""
    return [(1, _means(0, SIDE, cells))] + [
        (positions, np.concatenate([_means(at * (1 - share) * SIDE, share * SIDE, cells)
                                    for at in np.linspace(0, 1, positions).tolist()])) for share in WINDOWS]


def _means(start: float, length: float, cells: int) -> np.ndarray:
    """float32 ``[cells, 64]``: the pixels' weights in the mean of each cell of a window."""
    edges = start + length * np.arange(cells + 1) / cells
    covered = np.clip(edges[:, None] - np.arange(SIDE), 0, 1)  # the share of each pixel that lies before each edge
    return (np.diff(covered, axis=0) * cells / length).astype(np.float32)
