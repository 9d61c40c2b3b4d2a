"""Photometric distortion: random changes of light and colour."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from big_vision_lite.data.transforms.image import Augmentation
from big_vision_lite.errors import UserError

_GREY = np.array([0.299, 0.587, 0.114])  # luma of BT.601
# To YIQ, luma and two axes of colour: a rotation of the colour plane changes hue and keeps luma.
_YIQ = np.array([_GREY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


@dataclasses.dataclass(frozen=True)
class Photometric(Augmentation):
    """Brightness, contrast, saturation and hue, changed at random in this order (ranges of Liu et al., "SSD", 2016).
    Their product is one 3 x 4 matrix, so that values are rounded and clipped once."""

    probability: float = 0.5
    """Of changing each of the four, independently."""
    brightness: float = 32
    """Largest shift of values from 0 to 255, up or down; uniform."""
    contrast: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest factor of the distance to the image's mean grey; uniform."""
    saturation: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest factor of the distance to each pixel's grey; uniform."""
    hue: float = 18
    """Largest rotation in degrees, either way; uniform."""

    def __post_init__(self) -> None:
        valid = all(len(r) == 2 and 0 <= r[0] <= r[1] < math.inf for r in (self.contrast, self.saturation))
        if not (valid and 0 <= self.probability <= 1 and 0 <= self.brightness <= 255 and 0 <= self.hue <= 180):
            raise UserError(f"{self}: expected a probability up to 1, brightness up to 255, hue up to 180, and "
                            "contrast and saturation as (min, max) of at least 0")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Change uint8 ``[h, w, 3]`` in place. Always draws eight numbers, so that later draws stay the same."""
        applied, drawn = rng.random(4) < self.probability, rng.random(4)
        matrix, shift = np.eye(3), np.zeros(3)
        if applied[0]:
            shift += self.brightness * (2 * drawn[0] - 1)
        if applied[1]:
            factor = _between(self.contrast, drawn[1])
            grey = float(_GREY @ np.array(cv2.mean(image)[:3])) + shift[0]
            matrix, shift = factor * matrix, factor * shift + (1 - factor) * grey
        if applied[2]:
            factor = _between(self.saturation, drawn[2])
            saturate = factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1))
            matrix, shift = saturate @ matrix, saturate @ shift
        if applied[3]:
            angle = math.radians(self.hue * (2 * drawn[3] - 1))
            cos, sin = math.cos(angle), math.sin(angle)
            rotation = np.linalg.solve(_YIQ, np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ)
            matrix, shift = rotation @ matrix, rotation @ shift
        if applied.any():
            image[...] = cv2.transform(image, np.column_stack([matrix, shift]).astype(np.float32))


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
