"""Whether two images show the same: the correlation of their details, also when one is cut out of the other.

A hash of 64 bits finds what may be the same; of natural photos that are 9 to 14 bits apart most are not, but agree in
a bright sky above dark ground. So what is smooth is taken away first. Then whole images and windows of 95 % and 90 %
of their sides at 25 places are compared, which needs no network: a crop correlates about as well as a copy.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

SIDE = 64
"""Pixels of the thumbnails' sides."""
SMOOTH = 8.0
"""Standard deviation, in pixels of thumbnails, of the blur that tells the smooth from the details."""
COARSE, FINE = (16, 3), (32, 5)
"""Pixels of the windows' sides, and how many places a window has in each direction, from one end to the other. The
coarse look costs a tenth of the fine one, which is taken only where it is worth it."""
KEEPS = (0.95, 0.9)
"""Sides of the windows, as shares of the image's."""
NOISE = 0.25
"""Grey levels of 255: details as faint as that are of no weight."""
SCREEN = 0.2
"""How much lower than wanted a correlation may look coarsely."""


def correlation(left: np.ndarray, right: np.ndarray, wanted: float = 0.0) -> np.ndarray:
    """The largest correlation of either whole image with the other and with the windows of the other.

    Args:
      left, right: uint8 ``[n, 64, 64]``, grey.
      wanted: pairs that a coarse look finds lower than this by `SCREEN` are not looked at closely.

    Returns:
      float32 ``[n]`` up to 1; about 0 where an image has no details.
    """
    found = np.empty(len(left), np.float32)
    for start in range(0, len(left), 64):
        a, b = (_details(side[start : start + 64]) for side in (left, right))
        best = _best(a, b, *COARSE)
        close = np.flatnonzero(best >= wanted - SCREEN)
        if len(close):
            best[close] = _best(a[close], b[close], *FINE)
        found[start : start + 64] = best
    return found


def _details(grey: np.ndarray) -> np.ndarray:
    """float32 ``[n, 64, 64]``, without what is smooth."""
    return np.stack([image - cv2.GaussianBlur(image, (0, 0), SMOOTH) for image in grey.astype(np.float32)])


def _best(left: np.ndarray, right: np.ndarray, cells: int, places: int) -> np.ndarray:
    a, b = (_windows(side, cells, places) for side in (left, right))
    one, other = (np.matmul(views, whole[:, 0, :, None]).max(axis=(1, 2)) for views, whole in ((a, b), (b, a)))
    return np.maximum(one, other)


def _windows(details: np.ndarray, cells: int, places: int) -> np.ndarray:
    """float32 ``[n, 1 + 2 * places ** 2, cells ** 2]``: each whole image, then its windows, with mean 0 and a length
    of nearly 1."""
    made = []
    for many, rows in _resample(cells, places):
        across = details.reshape(-1, SIDE) @ rows.T  # large products are fast; [n * 64, places * cells]
        across = across.reshape(len(details), SIDE, len(rows)).transpose(0, 2, 1).reshape(-1, SIDE)
        both = (across @ rows.T).reshape(len(details), many, cells, many, cells)
        made.append(both.transpose(0, 3, 1, 4, 2).reshape(len(details), many * many, cells * cells))
    made = np.concatenate(made, axis=1)
    made -= made.mean(axis=2, keepdims=True)
    made /= np.sqrt(np.einsum("nvc,nvc->nv", made, made))[..., None] + NOISE * cells
    return made


@functools.cache
def _resample(cells: int, places: int) -> list[tuple[int, np.ndarray]]:
    """For whole images and for windows of each size: places in a direction, and float32 ``[places * cells, 64]``."""
    return [(1, _means(0, SIDE, cells))] + [
        (places, np.concatenate([_means(at * (1 - keep) * SIDE, keep * SIDE, cells)
                                 for at in np.linspace(0, 1, places).tolist()])) for keep in KEEPS]


def _means(start: float, length: float, cells: int) -> np.ndarray:
    """float32 ``[cells, 64]``: the weights of pixels in the means over the cells of a window."""
    edges = start + length * np.arange(cells + 1) / cells
    covered = np.clip(edges[:, None] - np.arange(SIDE), 0, 1)  # the share of each pixel that lies before each edge
    return (np.diff(covered, axis=0) * cells / length).astype(np.float32)
