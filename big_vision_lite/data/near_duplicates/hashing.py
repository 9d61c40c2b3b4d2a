"""Perceptual hashes of many images at once: 64 bits that resizing and compression hardly change."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, decode_crop_resize
from big_vision_lite.data.source import Example
from big_vision_lite.errors import BadImageError

SIDE, KEPT = 32, 8
"""The hash is made of the ``KEPT`` x ``KEPT`` lowest frequencies of an image of ``SIDE`` x ``SIDE`` pixels."""
LEAST_CONTRAST = 2.0
"""Standard deviation in grey levels, of 255, below which an image shows nothing that a hash could describe."""

_DCT = np.cos(np.pi / SIDE * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5))
_MIRROR = np.where(np.arange(KEPT) % 2, -1.0, 1.0)  # mirroring turns the sign of odd horizontal frequencies


def perceptual_hash(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pHash (Zauner, 2010) of images and of their mirror images, bit by bit as ``imagehash.phash`` has it.

    A bit says whether a coefficient of the cosine transform is above the median of those that are kept.

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
    """All of each image, whatever its aspect, squashed to ``side`` x ``side`` pixels.

    Returns:
      uint8 ``[n, side, side]`` if ``grey``, else ``[n, side, side, 3]``; and for each image what is wrong with it.
      Pixels of a bad one are 0.
    """
    out = np.zeros((len(examples), side, side, *(() if grey else (3,))), np.uint8)
    wrong: list[BadImageError | None] = [None] * len(examples)
    colour = np.empty((side, side, 3), np.uint8)
    for row, example in enumerate(examples):
        if isinstance(example, BadImageError):
            wrong[row] = example
            continue
        try:
            decode_crop_resize(example["image"], None, colour)
        except DecodeError as error:
            wrong[row] = BadImageError(example["id"], str(error))
            continue
        out[row] = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY) if grey else colour
    return out, wrong


def is_plain(grey: np.ndarray) -> np.ndarray:
    """bool ``[n]``: images ``[n, h, w]`` of one colour or nearly so, all of which would be duplicates of another."""
    return grey.std(axis=(1, 2)) < LEAST_CONTRAST
