"""Random changes of light and colour that leave every pixel where it is."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from big_vision_lite.errors import UserError

_GREY = np.array([0.299, 0.587, 0.114])  # luma of BT.601
# To luma and two axes of colour, YIQ: a turn in the plane of the latter changes hue and keeps luma.
_YIQ = np.array([_GREY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


@dataclasses.dataclass(frozen=True)
class Photometric:
    """Brightness, contrast, saturation and hue, each at random and in this order (the ranges of Liu et al., "SSD",
    2016). All four are one 3 x 4 matrix, so that values are rounded and clipped once."""

    probability: float = 0.5
    """That each of the four is changed, independently."""
    brightness: float = 32
    """Added to each value of 0 to 255: from minus to plus this much, uniform."""
    contrast: tuple[float, float] = (0.5, 1.5)
    """Factor of the distance to the image's mean grey; uniform."""
    saturation: tuple[float, float] = (0.5, 1.5)
    """Factor of the distance to each pixel's own grey; uniform."""
    hue: float = 18
    """Turn in degrees, from minus to plus this much, uniform."""

    def __post_init__(self):
        ranges = self.contrast, self.saturation
        fine = all(len(r) == 2 and 0 <= r[0] <= r[1] < math.inf for r in ranges)
        if not (fine and 0 <= self.probability <= 1 and 0 <= self.brightness <= 255 and 0 <= self.hue <= 180):
            raise UserError(f"{self}: expected a probability up to 1, brightness up to 255, hue up to 180, and "
                            "contrast and saturation as (least, most) of at least 0")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Change uint8 ``[h, w, 3]`` in place. Always draws eight numbers."""
        chance, drawn = rng.random(4) < self.probability, rng.random(4)
        matrix, shift = np.eye(3), np.zeros(3)
        if chance[0]:
            shift += self.brightness * (2 * drawn[0] - 1)
        if chance[1]:
            factor = _between(self.contrast, drawn[1])
            grey = float(_GREY @ np.array(cv2.mean(image)[:3])) + shift[0]
            matrix, shift = factor * matrix, factor * shift + (1 - factor) * grey
        if chance[2]:
            factor = _between(self.saturation, drawn[2])
            saturate = factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1))
            matrix, shift = saturate @ matrix, saturate @ shift
        if chance[3]:
            angle = math.radians(self.hue * (2 * drawn[3] - 1))
            cos, sin = math.cos(angle), math.sin(angle)
            turn = np.linalg.solve(_YIQ, np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ)
            matrix, shift = turn @ matrix, turn @ shift
        if chance.any():
            image[...] = cv2.transform(image, np.column_stack([matrix, shift]).astype(np.float32))


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
