"""From one stored example to the pixels that a network sees.

Each transform chooses its window from the size in the image's header, so that decoding, cropping, resizing
and flipping are one step, straight into the batch. All randomness comes from the generator passed in.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, Header, decode_crop_resize, read_header
from big_vision_lite.data.source import OBJECTS, Example
from big_vision_lite.errors import BadImageError, UserError

Size = int | tuple[int, int]
"""Pixels: of both sides, or (height, width)."""
Window = tuple[float, float, float, float]
"""(top, left, height, width) in pixels of the upright image at full resolution."""

_PIXELS_AND_OBJECTS = frozenset(("image", *OBJECTS))


class Transform(abc.ABC):
    """Turns an example into an image of a fixed shape, or of one of a few, the same for the same ``rng``."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the images it writes; of several shapes the largest."""

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """All shapes that it writes. A batch has one of them."""
        return (self.shape,)

    def bucket(self, sizes: np.ndarray) -> np.ndarray:
        """Which of ``shapes`` suits images of these sizes best: int ``[n, 2]``, (height, width), to int64 ``[n]``."""
        return np.zeros(len(sizes), np.int64)

    @abc.abstractmethod
    def __call__(self, example: Example, rng: np.random.Generator, out: np.ndarray) -> Example:
        """Write the image into ``out`` and return what else is known of the example.

        Args:
          example: see ``Example``; it is not changed.
          rng: all randomness comes from it.
          out: uint8 ``[height, width, 3]`` of one of ``shapes``, contiguous, for example one image of a batch.

        Returns:
          The example without ``image``, and without all that names places in it, unless moved along; with ``key``,
          uint32 ``[2]`` of ``rng``, from which a head may draw what is random about this image.

        Raises:
          BadImageError: the image cannot be decoded; ``out`` is then undefined.
        """


class ImageTransform(Transform):
    """A transform for tasks that label the whole image: objects in it are dropped from the example."""

    def __call__(self, example: Example, rng: np.random.Generator, out: np.ndarray) -> Example:
        if out.shape != self.shape:
            raise ValueError(f"out has shape {out.shape}, and {self} writes {self.shape}")
        try:
            image = example["image"]
            self.write(image, read_header(image), rng, out)
        except DecodeError as error:
            raise BadImageError(example["id"], str(error)) from error
        kept = {key: value for key, value in example.items() if key not in _PIXELS_AND_OBJECTS}
        return {**kept, "key": rng.integers(0, 2**32, 2, np.uint32)}

    @abc.abstractmethod
    def write(
        self, image: bytes | np.ndarray, header: Header, rng: np.random.Generator, out: np.ndarray
    ) -> None:
        """Write the transformed image into ``out``. Raises: DecodeError."""


class WindowTransform(ImageTransform):
    """A window of the image, resized."""

    antialias = True

    @abc.abstractmethod
    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        """The window of an image of ``height`` x ``width`` pixels, and whether to mirror it left to right."""

    def write(
        self, image: bytes | np.ndarray, header: Header, rng: np.random.Generator, out: np.ndarray
    ) -> None:
        window, flip = self.window(header.height, header.width, rng)
        decode_crop_resize(image, window, out, flip, header, self.antialias)


@dataclasses.dataclass(frozen=True)
class InceptionCrop(WindowTransform):
    """A random window of random area and aspect, resized (Szegedy et al., 2015, section 6). For training."""

    size: Size = 224
    area: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's pixels; uniform."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width / height; uniform in its logarithm: tall and wide are equally likely."""
    flip: bool = True
    """Mirror every second image, at random."""
    antialias: bool = True
    """False: plain bilinear interpolation, as others have it: a tenth faster, and fine structure aliases."""

    def __post_init__(self):
        _check_size("InceptionCrop.size", self.size)
        _check_range("InceptionCrop.area", self.area, 1.0)
        _check_range("InceptionCrop.aspect", self.aspect, math.inf)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*_sides(self.size), 3)

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        flip = self.flip and rng.random() < 0.5
        log_least, log_most = math.log(self.aspect[0]), math.log(self.aspect[1])
        for _ in range(10):
            area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * rng.random())
            aspect = math.exp(log_least + (log_most - log_least) * rng.random())
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                top = int((height - h + 1) * rng.random())
                left = int((width - w + 1) * rng.random())
                return (top, left, h, w), flip
        # Very long images: the largest central window of a legal aspect.
        h = min(height, max(round(width / self.aspect[0]), 1))
        w = min(width, max(round(height * self.aspect[1]), 1))
        return ((height - h) // 2, (width - w) // 2, h, w), flip


@dataclasses.dataclass(frozen=True)
class ResizeCrop(WindowTransform):
    """The image squashed to ``resize``, then a random window of ``size`` (Sun et al., 2017, section 4)."""

    resize: Size = 340
    size: Size = 299
    flip: bool = True
    """Mirror every second image, at random."""
    random: bool = True
    """False: the central window and no mirroring, for evaluation."""

    def __post_init__(self):
        _check_size("ResizeCrop.size", self.size)
        _check_size("ResizeCrop.resize", self.resize, self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*_sides(self.size), 3)

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        (resized_h, resized_w), (h, w) = _sides(self.resize), _sides(self.size)
        if self.random:
            flip = self.flip and rng.random() < 0.5
            top = int((resized_h - h + 1) * rng.random())
            left = int((resized_w - w + 1) * rng.random())
        else:
            flip, top, left = False, (resized_h - h) / 2, (resized_w - w) / 2
        down, across = height / resized_h, width / resized_w
        return (top * down, left * across, h * down, w * across), flip


@dataclasses.dataclass(frozen=True)
class CentreCrop(WindowTransform):
    """The central window of the image whose short side is resized to ``resize``. For evaluation."""

    size: Size = 224
    resize: int = 256

    def __post_init__(self):
        _check_size("CentreCrop.size", self.size)
        if not isinstance(self.resize, int) or isinstance(self.resize, bool):
            raise UserError(f"CentreCrop.resize is {self.resize!r}; expected the short side, a whole number")
        _check_size("CentreCrop.resize", self.resize, self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*_sides(self.size), 3)

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        scale = min(height, width) / self.resize
        h, w = (side * scale for side in _sides(self.size))
        return ((height - h) / 2, (width - w) / 2, h, w), False


@dataclasses.dataclass(frozen=True)
class Squash(WindowTransform):
    """The whole image resized to ``size``, whatever its aspect. For evaluation."""

    size: Size = 224

    def __post_init__(self):
        _check_size("Squash.size", self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*_sides(self.size), 3)

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        return (0, 0, height, width), False


@dataclasses.dataclass(frozen=True)
class PadCrop(ImageTransform):
    """The image moved by up to ``pad`` pixels each way: for small images (He et al., 2016, section 4.2).

    The border that appears mirrors the image (as in Wide ResNets): black bars would be an edge that no test
    image has, and they would depend on how pixels are normalized later.
    """

    size: Size = 32
    """Images of another size are resized to it first."""
    pad: int = 4
    flip: bool = True
    """Mirror every second image, at random."""

    def __post_init__(self):
        _check_size("PadCrop.size", self.size)
        if not isinstance(self.pad, int) or not 0 <= self.pad < min(_sides(self.size)):
            raise UserError(f"PadCrop.pad is {self.pad!r}; expected pixels from 0 to below size {self.size}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*_sides(self.size), 3)

    def write(
        self, image: bytes | np.ndarray, header: Header, rng: np.random.Generator, out: np.ndarray
    ) -> None:
        pad = self.pad
        height, width, _ = out.shape
        flip = self.flip and rng.random() < 0.5
        top = int((2 * pad + 1) * rng.random())
        left = int((2 * pad + 1) * rng.random())
        decode_crop_resize(image, None, out, flip, header)
        if top != pad or left != pad:
            padded = cv2.copyMakeBorder(out, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
            out[...] = padded[top : top + height, left : left + width]


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_size(name: str, size: Size, least: Size = 1) -> None:
    sides = size if isinstance(size, tuple) else (size, size)
    whole = len(sides) == 2 and all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides)
    if not whole:
        raise UserError(f"{name} is {size!r}; expected pixels: a positive whole number or (height, width)")
    if any(s < bound for s, bound in zip(sides, _sides(least), strict=True)):
        raise UserError(f"{name} is {size!r}, smaller than the crop of {least!r} taken from it")


def _check_range(name: str, bounds: tuple[float, float], most: float) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= most or math.isinf(bounds[1]):
        limit = "" if math.isinf(most) else f" <= {most:g}"
        raise UserError(f"{name} is {bounds!r}; expected (least, most) with 0 < least <= most{limit}")
