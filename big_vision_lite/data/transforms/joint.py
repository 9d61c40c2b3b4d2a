"""Transforms that move boxes and class masks along with the pixels: for detection and segmentation.

Coordinates: a pixel is a unit square; the first spans 0 to 1, with its centre at 0.5. Boxes are (x1, y1, x2, y2), edges
of such squares. Resizing h x w pixels to h' x w' maps y to y h' / h; mirroring maps x to w' - x.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import numpy as np

from big_vision_lite.data.decode import DecodeError, Header, decode_crop_resize, read_header
from big_vision_lite.data.keypoints import labelled
from big_vision_lite.data.masks import VOID, class_mask
from big_vision_lite.data.source import OBJECT_ARRAYS, Example, without_objects
from big_vision_lite.data.transforms.image import Size, Transform, check_size, height_width, is_pixels
from big_vision_lite.errors import BadImageError, UserError

GREY = (124, 116, 104)
"""The mean of ImageNet's pixels (RGB), for padding."""


@dataclasses.dataclass(frozen=True)
class View:
    """A window of an image and its size in the output."""

    top: int  # the window, in whole pixels of the upright image
    left: int
    height: int
    width: int
    rows: int  # its size in the output
    columns: int
    flip: bool

    @property
    def scale(self) -> tuple[float, float]:
        """Output pixels per image pixel, down and across."""
        return self.rows / self.height, self.columns / self.width

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """float64 ``[n, 4]`` (x1, y1, x2, y2) from pixels of the image to pixels of the output, not clipped."""
        down, across = self.scale
        moved = (boxes - [self.left, self.top, self.left, self.top]) * [across, down, across, down]
        if self.flip:
            moved[:, [0, 2]] = self.columns - moved[:, [2, 0]]
        return moved

    def points(self, points: np.ndarray) -> np.ndarray:
        """float64 ``[..., 2]`` (x, y) from pixels of the image to pixels of the output, not clipped."""
        moved = (points - [self.left, self.top]) * self.scale[::-1]
        return [self.columns, 0] + moved * [-1, 1] if self.flip else moved

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 ``[h, w]`` of the image to ``[rows, columns]``, by nearest neighbours."""
        window = mask[self.top : self.top + self.height, self.left : self.left + self.width]
        rows, columns = (((np.arange(out) + 0.5) * inside / out).astype(np.intp)
                         for out, inside in ((self.rows, self.height), (self.columns, self.width)))
        return window[rows[:, None], columns[::-1] if self.flip else columns]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointTransform(Transform):
    """Writes the image into the upper left of ``out`` and fills the rest with ``pad``.

    It returns the example without ``image`` and ``instance_mask``. ``labels`` stay those of the whole image. Moved with
    the pixels, or added:

    ``boxes``         float32 ``[n, 4]``, (x1, y1, x2, y2) in pixels of ``out``, with ``box_labels`` and the
                      `OBJECT_ARRAYS` of the same boxes, keypoints in pixels of ``out``; ``area`` is as annotated
    ``class_mask``    uint8 ``[H, W]`` of ``out``: 0 background, c + 1 for class c, 255 undecided or padding
    ``size``          int32 ``[2]``, height and width of the image within ``out``
    ``original_size`` int32 ``[2]``, height and width of the whole upright image
    ``scale``         float32 ``[2]``, pixels of ``out`` per image pixel, down and across
    ``key``           uint32 ``[2]``, seeds random choices that a head makes about this image

    Raises:
      BadImageError: the image cannot be decoded, or its mask has another size or is not a class mask.
    """

    min_visibility = 0.0
    """Boxes of which a smaller share of the area is visible are dropped."""
    random: bool = True
    """False: no random choices, neither mirroring nor ``augment``: for evaluation."""
    flip: bool = True
    """Mirror every second image, at random."""
    masks: bool = True
    """Move class masks along if there are any; False: drop them unread."""
    pad: tuple[int, int, int] = GREY
    """RGB of the padding."""

    def __post_init__(self) -> None:
        if len(self.pad) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in self.pad):
            raise UserError(f"{type(self).__name__}.pad is {self.pad!r}; expected red, green and blue from 0 to 255")

    @abc.abstractmethod
    def view(self, height: int, width: int, out: tuple[int, int], rng: np.random.Generator) -> View:
        """The view of an image of ``height`` x ``width`` in an output of ``out`` = (height, width)."""

    def __call__(self, example: Example, rng: np.random.Generator, out: np.ndarray) -> Example:
        key = rng.integers(0, 1 << 32, 2, np.uint32)
        try:
            header = read_header(example["image"])
            view = self.view(header.height, header.width, out.shape[:2], rng)
            self._write(example["image"], header, view, rng, out)
        except DecodeError as error:
            raise BadImageError(example["id"], str(error)) from error
        transformed = without_objects(example)
        del transformed["image"]
        if "boxes" in example:
            transformed |= self._objects(example, header, view)
        if self.masks and "class_mask" in example:
            transformed["class_mask"] = np.full(out.shape[:2], VOID, np.uint8)
            transformed["class_mask"][: view.rows, : view.columns] = view.mask(class_mask(example, header[:2]))
        return transformed | {
            "size": np.array([view.rows, view.columns], np.int32),
            "original_size": np.array(header[:2], np.int32),
            "scale": np.array(view.scale, np.float32),
            "key": key,
        }

    def _write(self, image: bytes | np.ndarray, header: Header, view: View, rng: np.random.Generator,
               out: np.ndarray) -> None:
        full_width = view.columns == out.shape[1]  # then the image's rows are contiguous in ``out``
        resized = out[: view.rows] if full_width else np.empty((view.rows, view.columns, 3), np.uint8)
        decode_crop_resize(image, (view.top, view.left, view.height, view.width), resized, view.flip, header)
        self._augment(resized, rng)
        if not full_width:
            out[: view.rows, : view.columns] = resized
            out[: view.rows, view.columns :] = self.pad
        out[view.rows :] = self.pad

    def _objects(self, example: Example, header: Header, view: View) -> dict[str, np.ndarray]:
        """Boxes in the output and the arrays about them, without boxes of which too little is visible."""
        boxes = view.boxes(example["boxes"].astype(np.float64) * ([header.width, header.height] * 2))
        clipped = np.clip(boxes, 0, [view.columns, view.rows] * 2)
        visible = (clipped[:, 2:] > clipped[:, :2]).all(1)
        visible[visible] = _areas(clipped[visible]) >= self.min_visibility * _areas(boxes[visible])
        objects = {name: example[name][visible] for name in ("box_labels", *OBJECT_ARRAYS) if name in example}
        for name, array in OBJECT_ARRAYS.items():
            if name in objects and array.points:
                points = objects[name].copy()
                points[..., :2] = view.points(points[..., :2].astype(np.float64) * [header.width, header.height])
                points[~labelled(points)] = 0
                objects[name] = points[:, example["keypoint_mirror"]] if view.flip else points
        return {"boxes": clipped[visible].astype(np.float32)} | objects


@dataclasses.dataclass(frozen=True)
class ResizeToFit(JointTransform):
    """The whole image, scaled, in one of a few shapes: for detection, and for evaluation.

    The short side becomes ``min_size``, or less if the long side would exceed ``max_size`` or the image its bucket. An
    image belongs to the bucket in which it can be largest; among equals, to the one with the fewest pixels. The image
    is written into ``out`` of whatever shape; without the pipeline's buckets that is ``shape``.
    """

    min_size: int | tuple[int, ...] = 800
    """Pixels of the short side; of several, one is drawn per image. Without ``random``, the last."""
    max_size: int = 1333
    """Maximum pixels of the long side."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Shapes to write, (height, width). Default: one for wide and one for tall images, just large enough for
    ``min_size`` and ``max_size``, in multiples of 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = self._min_sizes
        if not sides or not all(map(is_pixels, (*sides, self.max_size))) or max(sides) > self.max_size:
            raise UserError(f"ResizeToFit: min_size={self.min_size!r}, max_size={self.max_size!r}; expected pixels, "
                            "min_size at most max_size")
        for bucket in self.buckets:
            check_size("ResizeToFit.buckets", (*bucket,))
        if len(set(self.buckets)) < len(self.buckets):
            raise UserError(f"ResizeToFit.buckets is {self.buckets!r}; expected each shape once")

    @property
    def _min_sizes(self) -> tuple[int, ...]:
        return (self.min_size,) if isinstance(self.min_size, int) else self.min_size

    @property
    def _drawn_sizes(self) -> tuple[int, ...]:
        """What the short side is drawn from."""
        return self._min_sizes if self.random else self._min_sizes[-1:]

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        if self.buckets:
            return tuple((*bucket, 3) for bucket in self.buckets)
        short, long = (-(-side // 32) * 32 for side in (max(self._drawn_sizes), self.max_size))
        return ((short, long, 3), (long, short, 3)) if short < long else ((long, long, 3),)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The largest of ``shapes``."""
        return max(self.shapes, key=lambda shape: shape[0] * shape[1])

    def bucket(self, sizes: np.ndarray) -> np.ndarray:
        height, width = np.maximum(sizes, 1).T
        scale = self._scale(height, width, max(self._drawn_sizes))
        scales = np.stack([np.minimum(scale, np.minimum(h / height, w / width)) for h, w, _ in self.shapes], 1)
        by_pixels = np.argsort([h * w for h, w, _ in self.shapes], kind="stable")
        largest = scales[:, by_pixels] >= scales.max(1, keepdims=True) * (1 - 1e-9)
        return by_pixels[largest.argmax(1)]

    def view(self, height: int, width: int, out: tuple[int, int], rng: np.random.Generator) -> View:
        min_size = self._drawn_sizes[int(len(self._drawn_sizes) * rng.random())]
        flip = self.random and self.flip and rng.random() < 0.5
        scale = min(float(self._scale(height, width, min_size)), out[0] / height, out[1] / width)
        rows, columns = (min(max(round(side * scale), 1), limit)
                         for side, limit in zip((height, width), out, strict=True))
        return View(0, 0, height, width, rows, columns, flip)

    def _scale(self, height, width, min_size: int):
        """The scale of images of this size in an output large enough for them."""
        return np.minimum(min_size / np.minimum(height, width), self.max_size / np.maximum(height, width))


@dataclasses.dataclass(frozen=True)
class ScaleJitter(JointTransform):
    """A random crop of the randomly scaled image, padded where that is smaller, in one fixed shape.

    With ``of="image"`` it is the training crop of segmentation (Chen et al., "Rethinking atrous convolution", 2017,
    section 4.1); with ``of="fit"`` and ``scale=(0.1, 2.0)`` large-scale jitter for detection (Ghiasi et al., "Simple
    copy-paste", 2021, section 3).
    """

    size: Size = 513
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor; uniform. Without ``random``: their mean, and the central window."""
    of: Literal["image", "fit"] = "image"
    """What the factor multiplies: the image's own size, or the size at which it just fits into ``size``."""
    min_visibility: float = 0.1
    """A box of which a smaller share of the area is in the window is dropped; the others are clipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("ScaleJitter.size", self.size)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < 100:
            raise UserError(f"ScaleJitter.scale is {self.scale!r}; expected (min, max) with 0 < min <= max < 100")
        if not 0 <= self.min_visibility <= 1:
            raise UserError(f"ScaleJitter.min_visibility is {self.min_visibility!r}; expected a share from 0 to 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*height_width(self.size), 3)

    def view(self, height: int, width: int, out: tuple[int, int], rng: np.random.Generator) -> View:
        share, down, across, mirror = rng.random(4).tolist() if self.random else (0.5, 0.5, 0.5, 1.0)
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * share
        if self.of == "fit":
            factor *= min(out[0] / height, out[1] / width)
        top, tall, rows = _window(height, factor, out[0], down)
        left, wide, columns = _window(width, factor, out[1], across)
        return View(top, left, tall, wide, rows, columns, self.flip and mirror < 0.5)


def _window(length: int, factor: float, limit: int, position: float) -> tuple[int, int, int]:
    """Along one side: start and length of the window in pixels of the image, and its length in the output. The window
    has whole pixels, so that boxes and masks move exactly as the decoded pixels do.

    Args:
      length: of the image's side; scaled by ``factor`` it is cut to ``limit``.
      position: of the window, from 0 to 1.
    """
    scaled = max(round(length * factor), 1)
    if scaled <= limit:
        return 0, length, scaled
    inside = min(max(round(limit * length / scaled), 1), length)
    return int((length - inside + 1) * position), inside, limit


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
