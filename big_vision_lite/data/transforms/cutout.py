"""Cutout: a square of the image is covered (DeVries & Taylor, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from big_vision_lite.data.random_streams import Draws
from big_vision_lite.data.transforms.image import Choices, ExactAugmentation
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cutout(ExactAugmentation):
    """Covers a square whose centre is any pixel of the image, equally likely, so that parts of it may lie outside
    (DeVries & Taylor, 2017, section 3.2)."""

    size: int = 16
    """Side of the square in pixels; the paper's is 16 for CIFAR-10 and 8 for CIFAR-100."""
    fill: tuple[int, int, int] = (124, 116, 104)
    """Its colour (RGB, 0 to 255). The paper's is the mean colour of the data; this is ImageNet's."""

    def __post_init__(self) -> None:
        if self.size < 1 or len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
            raise UserError(f"{self}: expected a size of at least 1 pixel, and three values from 0 to 255 as fill")

    def choose(self, rng: Draws, height: int, width: int) -> Choices:
        """The upper left corner of the square, which may be negative."""
        half = self.size // 2
        return {"top": np.int32(height * rng.random()) - half, "left": np.int32(width * rng.random()) - half}

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        height, width, _ = image.shape
        top, left = self.choose(rng, height, width).values()
        image[max(top, 0) : top + self.size, max(left, 0) : left + self.size] = self.fill

    def change(self, images: Any, choices: Choices, xp: Any) -> Any:
        def covered(start: Any, side: int) -> Any:
            """bool ``[b, side]``"""
            offset = xp.arange(side, dtype=xp.int32)[None] - start[:, None]
            return (offset >= 0) & (offset < self.size)

        rows, columns = (covered(choices[side], length) for side, length in
                         zip(("top", "left"), images.shape[1:3], strict=True))
        square = rows[:, :, None, None] & columns[:, None, :, None]
        return xp.where(square, xp.asarray(self.fill, xp.uint8)[None, None, None], images)
