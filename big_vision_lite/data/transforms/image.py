"""From a stored example to the pixels that a network sees.

Each transform chooses its window from the size in the image's header, so that decoding, cropping, resizing and flipping
are one step, straight into the batch. All randomness comes from the generator passed in.
"""

# No annotations as text here: pdoc looks those that a subclass inherits up in the module of the subclass.

import abc
import dataclasses
import math
from typing import Any

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, Header, decode_crop_resize, read_header
from big_vision_lite.data.random_streams import Draws
from big_vision_lite.data.source import Example, without_objects
from big_vision_lite.errors import BadImageError, UserError

Size = int | tuple[int, int]
"""Pixels: of both sides, or (height, width)."""
Window = tuple[float, float, float, float]
"""(top, left, height, width) in pixels of the upright image at full resolution."""
Choices = dict[str, Any]
"""Random choices about images: a number of each, or arrays ``[b]`` for a batch."""


@dataclasses.dataclass(frozen=True)
class Augmentation(abc.ABC):
    """A random change of pixels that leaves every object at its place, as `Photometric` does."""

    @abc.abstractmethod
    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Change uint8 ``[h, w, 3]`` in place."""


@dataclasses.dataclass(frozen=True)
class ExactAugmentation(Augmentation):
    """An augmentation that also changes whole batches, to the same bits in NumPy and in JAX: for `Input.resident`."""

    @abc.abstractmethod
    def choose(self, rng: Draws, height: int, width: int) -> Choices:
        """The random choices about an image of ``height`` x ``width`` pixels, or about each of a batch of them."""

    @abc.abstractmethod
    def change(self, images: Any, choices: Choices, xp: Any) -> Any:
        """A batch, uint8 ``[b, h, w, 3]``, after these choices.

        Args:
          xp: the module whose arrays these are: numpy or jax.numpy.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform(abc.ABC):
    """Turns an example into an image of one fixed shape, or one of a few; deterministic given ``rng``."""

    random = True
    """False: no random choices, for evaluation."""
    augment: tuple[Augmentation, ...] = ()
    """Applied to the resized image, in this order; not where ``random`` is False."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the images it writes; the largest if there are several shapes."""

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """All shapes that it writes. Each batch has one of them."""
        return (self.shape,)

    @property
    def single_view(self) -> "Transform":
        """This transform; of one that writes several views of an image, one that shows it once, as features need it."""
        return self

    def bucket(self, sizes: np.ndarray) -> np.ndarray:
        """The best of ``shapes`` for each image size: int ``[n, 2]``, (height, width), to int64 ``[n]``."""
        return np.zeros(len(sizes), np.int64)

    @abc.abstractmethod
    def __call__(self, example: Example, rng: np.random.Generator, out: np.ndarray) -> Example:
        """Write the image into ``out`` and return the rest of the example.

        Args:
          example: see ``Example``; it is not changed.
          rng: the source of all randomness.
          out: uint8 ``[height, width, 3]`` of one of ``shapes``, contiguous, such as one image of a batch.

        Returns:
          The example without ``image``; objects are dropped or moved with the pixels. Its ``key``, uint32 ``[2]`` drawn
          from ``rng``, seeds random choices that a head makes about this image.

        Raises:
          BadImageError: the image cannot be decoded; ``out`` is then undefined.
        """

    def _augment(self, image: np.ndarray, rng: np.random.Generator) -> None:
        if self.random:
            for change in self.augment:
                change(image, rng)


class ImageTransform(Transform):
    """A transform for tasks that label the whole image: it drops objects from the example."""

    size: Size

    def __post_init__(self) -> None:
        check_size(f"{type(self).__name__}.size", self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*height_width(self.size), 3)

    @property
    def kept(self) -> "ImageTransform | None":
        """For `Input.resident`: the transform without random choices whose images are decoded once and kept; `choose`
        and `change` then make of them what this transform writes. None: there is none, because each time another window
        is decoded."""
        return None

    def choose(self, rng: Draws) -> Choices:
        """The random choices of `write`, about one image or about each of a batch."""
        return {}

    def change(self, images: Any, choices: Choices, xp: Any) -> Any:
        """What `write` makes by these choices of images that ``kept`` made, both uint8 ``[b, h, w, 3]``; ``xp`` is
        numpy or jax.numpy."""
        return images

    def __call__(self, example: Example, rng: np.random.Generator, out: np.ndarray) -> Example:
        if out.shape != self.shape:
            raise ValueError(f"out has shape {out.shape}, but {self} writes {self.shape}")
        try:
            image = example["image"]
            self.write(image, read_header(image), rng, out)
        except DecodeError as error:
            raise BadImageError(example["id"], str(error)) from error
        self._augment(out, rng)
        transformed = without_objects(example) | {"key": rng.integers(0, 2**32, 2, np.uint32)}
        del transformed["image"]
        return transformed

    @abc.abstractmethod
    def write(self, image: bytes | np.ndarray, header: Header, rng: np.random.Generator, out: np.ndarray) -> None:
        """Write the transformed image into ``out``. Raises: DecodeError."""


class WindowTransform(ImageTransform):
    """A window of the image, resized."""

    antialias = True

    @abc.abstractmethod
    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        """The window of an image of ``height`` x ``width`` pixels, and whether to mirror it left to right."""

    def write(self, image: bytes | np.ndarray, header: Header, rng: np.random.Generator, out: np.ndarray) -> None:
        window, flip = self.window(header.height, header.width, rng)
        decode_crop_resize(image, window, out, flip, header, self.antialias)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(WindowTransform):
    """A random window of random area and aspect, resized (Szegedy et al., 2015, section 6). For training."""

    size: Size = 224
    area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's pixels; uniform."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height; log-uniform, so that tall and wide are equally likely."""
    flip: bool = True
    """Mirror every second image, at random."""
    antialias: bool = True
    """False: plain bilinear interpolation, as in other libraries: a tenth faster, but fine structure aliases."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("RandomResizedCrop.area", self.area, 1.0)
        _check_range("RandomResizedCrop.aspect", self.aspect)

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        flip = self.flip and rng.random() < 0.5
        log_min, log_max = math.log(self.aspect[0]), math.log(self.aspect[1])
        for _ in range(10):
            area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * rng.random())
            aspect = math.exp(log_min + (log_max - log_min) * rng.random())
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                top = int((height - h + 1) * rng.random())
                left = int((width - w + 1) * rng.random())
                return (top, left, h, w), flip
        # Very long images: the largest central window of an allowed aspect.
        h = min(height, max(round(width / self.aspect[0]), 1))
        w = min(width, max(round(height * self.aspect[1]), 1))
        return ((height - h) // 2, (width - w) // 2, h, w), flip


@dataclasses.dataclass(frozen=True)
class ResizeCrop(WindowTransform):
    """The image resized to ``resize`` whatever its aspect, then a random crop of ``size`` (Sun et al., 2017, section
    4)."""

    resize: Size = 340
    size: Size = 299
    flip: bool = True
    """Mirror every second image, at random."""
    random: bool = True
    """False: the central crop, neither mirrored nor augmented, for evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("ResizeCrop.resize", self.resize, self.size)

    @property
    def kept(self) -> ImageTransform | None:
        return None if self.random else self

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        (resized_h, resized_w), (h, w) = height_width(self.resize), height_width(self.size)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_pixels(self.resize):
            raise UserError(f"CentreCrop.resize is {self.resize!r}; expected pixels of the short side, a whole number")
        check_size("CentreCrop.resize", self.resize, self.size)

    @property
    def kept(self) -> ImageTransform:
        return dataclasses.replace(self, augment=())

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        scale = min(height, width) / self.resize
        h, w = (side * scale for side in height_width(self.size))
        return ((height - h) / 2, (width - w) / 2, h, w), False


@dataclasses.dataclass(frozen=True)
class Resize(WindowTransform):
    """The whole image resized to ``size``, whatever its aspect. For evaluation."""

    size: Size = 224

    @property
    def kept(self) -> ImageTransform:
        return dataclasses.replace(self, augment=())

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Window, bool]:
        return (0, 0, height, width), False


@dataclasses.dataclass(frozen=True)
class RandomCropPadded(ImageTransform):
    """A random crop of the image padded by ``pad`` pixels: for small images (He et al., 2016, section 4.2).

    The padding mirrors the image (as in Wide ResNets): black bars would be an edge that no test image has, and they
    would depend on how pixels are normalized later.
    """

    size: Size = 32
    """Images of other sizes are resized to it first."""
    pad: int = 4
    flip: bool = True
    """Mirror every second image, at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pad, int) or not 0 <= self.pad < min(height_width(self.size)):
            raise UserError(f"RandomCropPadded.pad is {self.pad!r}; expected pixels from 0 to below size {self.size}")

    @property
    def kept(self) -> ImageTransform:
        return Resize(self.size)

    def choose(self, rng: Draws) -> Choices:
        flip = {"flip": rng.random() < 0.5} if self.flip else {}
        return flip | {side: np.int32((2 * self.pad + 1) * rng.random()) for side in ("top", "left")}

    def write(self, image: bytes | np.ndarray, header: Header, rng: np.random.Generator, out: np.ndarray) -> None:
        pad, choices = self.pad, self.choose(rng)
        top, left = choices["top"], choices["left"]
        height, width, _ = out.shape
        decode_crop_resize(image, None, out, choices.get("flip", False), header)
        if top != pad or left != pad:
            padded = cv2.copyMakeBorder(out, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
            out[...] = padded[top : top + height, left : left + width]

    def change(self, images: Any, choices: Choices, xp: Any) -> Any:
        count, height, width, _ = images.shape

        def mirrored(start: Any, side: int) -> Any:
            """The pixels that each image's crop of the padded side shows: int32 ``[b, side]``."""
            index = abs(xp.arange(side, dtype=xp.int32)[None] + start[:, None] - self.pad)
            return xp.where(index < side, index, 2 * side - 2 - index)

        rows, columns = mirrored(choices["top"], height), mirrored(choices["left"], width)
        if "flip" in choices:
            columns = xp.where(choices["flip"][:, None], width - 1 - columns, columns)
        pixels = (xp.arange(count, dtype=xp.int32)[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
        return xp.take(images.reshape(-1, 3), pixels, axis=0)


def height_width(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def check_size(name: str, size: Size, crop: Size = 1) -> None:
    """Raises: UserError unless ``size`` is pixels, and at least as many as are cropped from it."""
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or not all(is_pixels(side) for side in sides):
        raise UserError(f"{name} is {size!r}; expected pixels: a positive whole number or (height, width)")
    if any(side < bound for side, bound in zip(sides, height_width(crop), strict=True)):
        raise UserError(f"{name} is {size!r}, smaller than the crop of {crop!r} taken from it")


def is_pixels(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_range(name: str, bounds: tuple[float, float], limit: float = math.inf) -> None:
    """Raises: UserError unless ``bounds`` is (min, max), positive and finite."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= limit or math.isinf(bounds[1]):
        up_to = "" if math.isinf(limit) else f" <= {limit:g}"
        raise UserError(f"{name} is {bounds!r}; expected (min, max) with 0 < min <= max{up_to}")
