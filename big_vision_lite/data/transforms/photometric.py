"""Random changes of light, colour and sharpness."""

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
            saturate = _saturation(_between(self.saturation, drawn[2]))
            matrix, shift = saturate @ matrix, saturate @ shift
        if applied[3]:
            rotation = _rotation(self.hue * (2 * drawn[3] - 1))
            matrix, shift = rotation @ matrix, rotation @ shift
        if applied.any():
            image[...] = cv2.transform(image, np.column_stack([matrix, shift]).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class ColorJitter(Augmentation):
    """Brightness, contrast, saturation and hue, all four changed at random, in random order (Chen et al., "SimCLR",
    2020, appendix A). As in `Photometric`, values are rounded and clipped once, and hue is rotated at equal luma."""

    probability: float = 0.8
    """Of changing an image at all."""
    brightness: float = 0.8
    """Largest change of the factor of all values, from 1 up or down; uniform, as the next two."""
    contrast: float = 0.8
    """Largest change of the factor of the distance to the image's mean grey."""
    saturation: float = 0.8
    """Largest change of the factor of the distance to each pixel's grey."""
    hue: float = 72
    """Largest rotation in degrees, either way; uniform."""

    def __post_init__(self) -> None:
        factors = (self.probability, self.brightness, self.contrast, self.saturation)
        if not (all(0 <= value <= 1 for value in factors) and 0 <= self.hue <= 180):
            raise UserError(f"{self}: expected probability, brightness, contrast and saturation from 0 to 1, and hue "
                            "from 0 to 180")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Change uint8 ``[h, w, 3]`` in place. Always draws nine numbers, so that later draws stay the same."""
        drawn = rng.random(9)
        if drawn[0] >= self.probability:
            return
        matrix, shift, mean = np.eye(3), np.zeros(3), np.array(cv2.mean(image)[:3])
        for change in np.argsort(drawn[5:]):
            centred = 2 * drawn[1 + change] - 1
            if change == 0:
                matrix, shift = ((1 + self.brightness * centred) * of for of in (matrix, shift))
            elif change == 1:
                factor, grey = 1 + self.contrast * centred, float(_GREY @ (matrix @ mean + shift))
                matrix, shift = factor * matrix, factor * shift + (1 - factor) * grey
            else:
                turn = _saturation(1 + self.saturation * centred) if change == 2 else _rotation(self.hue * centred)
                matrix, shift = turn @ matrix, turn @ shift
        image[...] = cv2.transform(image, np.column_stack([matrix, shift]).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class RandomGrey(Augmentation):
    """Grey instead of colours (luma of BT.601)."""

    probability: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        if rng.random() < self.probability:
            image[...] = cv2.transform(image, _saturation(0.0).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class GaussianBlur(Augmentation):
    """Blur by a Gaussian (Chen et al., "SimCLR", 2020, appendix A). Not for images as small as CIFAR's."""

    probability: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation in pixels; uniform."""
    kernel: float = 0.1
    """Width of the window as a share of the image's longer side; at least 3 pixels."""

    def __post_init__(self) -> None:
        _check_probability(self)
        if not (0 < self.sigma[0] <= self.sigma[1] < math.inf and 0 < self.kernel <= 1):
            raise UserError(f"{self}: expected sigma as (min, max) above 0, and kernel above 0 up to 1")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        applied, drawn = rng.random(2)
        if applied < self.probability:
            side = max(3, int(self.kernel * max(image.shape[:2])) | 1)
            image[...] = cv2.GaussianBlur(image, (side, side), _between(self.sigma, drawn))


@dataclasses.dataclass(frozen=True)
class Solarize(Augmentation):
    """Inverts bright values (Grill et al., "BYOL", 2020, appendix B)."""

    probability: float = 0.2
    threshold: int = 128
    """Values from here on are inverted."""

    def __post_init__(self) -> None:
        _check_probability(self)
        if not 0 <= self.threshold <= 255:
            raise UserError(f"{self}: expected a threshold from 0 to 255")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        if rng.random() < self.probability:
            np.subtract(255, image, out=image, where=image >= self.threshold)


def _check_probability(change: RandomGrey | GaussianBlur | Solarize) -> None:
    if not 0 <= change.probability <= 1:
        raise UserError(f"{change}: expected a probability from 0 to 1")


def _saturation(factor: float) -> np.ndarray:
    """The matrix that multiplies the distance to each pixel's grey."""
    return factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1))


def _rotation(degrees: float) -> np.ndarray:
    """The matrix that rotates hue at equal luma."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.linalg.solve(_YIQ, np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
