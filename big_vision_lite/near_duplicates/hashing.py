"""Perceptual hashes of many images at once: 64 bits that barely change under resizing and compression."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, decode_crop_resize
from big_vision_lite.data.source import Example
from big_vision_lite.errors import BadImageError

SIDE, KEPT = 32, 8
"""The hash is made from the ``KEPT`` x ``KEPT`` lowest frequencies of an image of ``SIDE`` x ``SIDE`` pixels."""
MIN_CONTRAST = 2.0
"""Standard deviation in grey levels, of 255, below which an image shows nothing that a hash could describe."""

_DCT = np.cos(np.pi / SIDE * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5))
_MIRROR = np.where(np.arange(KEPT) % 2, -1.0, 1.0)  # mirroring negates odd horizontal frequencies


def perceptual_hash(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pHash (Zauner, 2010) of images and of their mirror images, bit by bit as in ``imagehash.phash``.

    A bit says whether a coefficient of the cosine transform is above the median of the lowest frequencies.

    Args:
      grey: uint8 ``[n, 32, 32]``.

    Returns:
      uint64 ``[n]`` and uint64 ``[n]``.
    """
    low = _DCT @ grey.astype(np.float64) @ _DCT.T
    return _bits(low), _bits(low * _MIRROR)


def _bits(low: np.ndarray) -> np.ndarray:
    flat = low.reshape(len(low), KEPT * KEPT)
    above = flat > np.median(flat, axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64).reshape(len(low))


def pixels(examples: Sequence[Example | BadImageError], side: int,
           grey: bool) -> tuple[np.ndarray, list[BadImageError | None]]:
    """Each whole image, whatever its aspect, resized to ``side`` x ``side`` pixels.

    Returns:
      uint8 ``[n, side, side]`` if ``grey``, else ``[n, side, side, 3]``, 0 for images that cannot be read; and each
      image's error or None.
    """
    out = np.zeros((len(examples), side, side, *(() if grey else (3,))), np.uint8)
    errors: list[BadImageError | None] = [None] * len(examples)
    colour = np.empty((side, side, 3), np.uint8)
    for row, example in enumerate(examples):
        if isinstance(example, BadImageError):
            errors[row] = example
            continue
        try:
            decode_crop_resize(example["image"], None, colour)
        except DecodeError as error:
            errors[row] = BadImageError(example["id"], str(error))
            continue
        out[row] = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY) if grey else colour
    return out, errors


def is_plain(grey: np.ndarray) -> np.ndarray:
    """bool ``[n]``: images ``[n, h, w]`` of (nearly) one colour, which would all be duplicates of each other."""
    return grey.std(axis=(1, 2)) < MIN_CONTRAST
