"""Transforms that move boxes and class masks along with the pixels: for detection and segmentation.

One convention of coordinates: a pixel is a unit square, the first reaches from 0 to 1 and its centre is at 0.5. Boxes
are edges of such squares. An image of h x w pixels resized to h' x w' maps y to y h' / h; mirrored, x becomes w' - x.
"""

from __future__ import annotations

import abc
import dataclasses
import io
from typing import Literal

import numpy as np
from PIL import Image

from big_vision_lite.data.decode import DecodeError, Header, decode_crop_resize, read_header
from big_vision_lite.data.photometric import Photometric
from big_vision_lite.data.source import Example
from big_vision_lite.data.transforms import Transform
from big_vision_lite.errors import BadImageError, UserError

VOID = 255
"""In a class mask: undecided, or beside the image; counts for nothing."""
GREY = (124, 116, 104)
"""The mean of ImageNet's pixels (RGB), for what lies beside the image."""

_OF_OBJECTS = ("box_labels", "crowd", "difficult", "area", "visible")
_MASK_MODES = ("P", "L", "1", "I;16", "I;16B")


@dataclasses.dataclass(frozen=True)
class View:
    """Which window of an image is seen, and at what size."""

    top: int  # the window, in whole pixels of the upright image
    left: int
    height: int
    width: int
    rows: int  # its size in the output
    columns: int
    flip: bool

    @property
    def scale(self) -> tuple[float, float]:
        """Output pixels for each of the image's, down and across."""
        return self.rows / self.height, self.columns / self.width

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """float64 ``[n, 4]`` (ymin, xmin, ymax, xmax) from pixels of the image to those of the output, not clipped."""
        down, across = self.scale
        moved = (boxes - [self.top, self.left, self.top, self.left]) * [down, across, down, across]
        if self.flip:
            moved[:, [1, 3]] = self.columns - moved[:, [3, 1]]
        return moved

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 ``[h, w]`` of the image to ``[rows, columns]``, each pixel the nearest one."""
        window = mask[self.top : self.top + self.height, self.left : self.left + self.width]
        rows, columns = (((np.arange(out) + 0.5) * inside / out).astype(np.intp)
                         for out, inside in ((self.rows, self.height), (self.columns, self.width)))
        return window[rows[:, None], columns[::-1] if self.flip else columns]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointTransform(Transform):
    """Writes the image into the upper left of ``out`` and fills the rest with ``pad``.

    What it returns of the example, beside all that names no place:

    ``boxes``         float32 ``[n, 4]``, (ymin, xmin, ymax, xmax) in pixels of ``out``; with ``box_labels``, ``crowd``,
                      ``difficult``, ``area`` (as annotated, not scaled) and ``visible`` of the same boxes
    ``class_mask``    uint8 ``[H, W]`` of ``out``: 0 background, c + 1 for class c, 255 undecided or beside the image
    ``size``          int32 ``[2]``, height and width of the image within ``out``
    ``original_size`` int32 ``[2]``, of the whole upright image
    ``scale``         float32 ``[2]``, pixels of ``out`` for each of the image's, down and across
    ``key``           uint32 ``[2]``, from the example's random numbers, for random choices that a head makes

    ``labels`` stay those of the whole image. ``instance_mask`` is not moved along and left out.

    Raises:
      BadImageError: as any transform, and when the mask is of another size or no mask of classes.
    """

    least_seen = 0.0
    """Boxes of which a smaller share is seen are dropped."""
    random: bool = True
    """False: nothing is left to chance, for evaluation: never mirrored, colours as they are."""
    flip: bool = True
    """Mirror every second image, at random."""
    photometric: bool = False
    """Change light and colours at random, by ``colours``."""
    colours: Photometric = Photometric()
    masks: bool = True
    """Move class masks along, where there are any; False: leave them out unread."""
    pad: tuple[int, int, int] = GREY
    """RGB beside the image."""

    def __post_init__(self):
        if len(self.pad) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in self.pad):
            raise UserError(f"{type(self).__name__}.pad is {self.pad!r}; expected red, green and blue from 0 to 255")

    @abc.abstractmethod
    def view(self, height: int, width: int, out: tuple[int, int], rng: np.random.Generator) -> View:
        """What is seen of an image of ``height`` x ``width`` in an output of ``out`` = (height, width)."""

    def __call__(self, example: Example, rng: np.random.Generator, out: np.ndarray) -> Example:
        key = rng.integers(0, 1 << 32, 2, np.uint32)
        try:
            header = read_header(example["image"])
            view = self.view(header.height, header.width, out.shape[:2], rng)
            self._write(example["image"], header, view, rng, out)
        except DecodeError as error:
            raise BadImageError(example["id"], str(error)) from error
        found = {name: value for name, value in example.items()
                 if name not in (*_OF_OBJECTS, "image", "boxes", "instance_mask", "class_mask")}
        if "boxes" in example:
            found |= self._objects(example, header, view)
        if self.masks and "class_mask" in example:
            found["class_mask"] = np.full(out.shape[:2], VOID, np.uint8)
            found["class_mask"][: view.rows, : view.columns] = view.mask(class_mask(example, header[:2]))
        return found | {
            "size": np.array([view.rows, view.columns], np.int32),
            "original_size": np.array(header[:2], np.int32),
            "scale": np.array(view.scale, np.float32),
            "key": key,
        }

    def _write(self, image: bytes | np.ndarray, header: Header, view: View, rng: np.random.Generator,
               out: np.ndarray) -> None:
        whole_rows = view.columns == out.shape[1]
        place = out[: view.rows] if whole_rows else np.empty((view.rows, view.columns, 3), np.uint8)
        decode_crop_resize(image, (view.top, view.left, view.height, view.width), place, view.flip, header)
        if self.photometric and self.random:
            self.colours(place, rng)
        if not whole_rows:
            out[: view.rows, : view.columns] = place
            out[: view.rows, view.columns :] = self.pad
        out[view.rows :] = self.pad

    def _objects(self, example: Example, header: Header, view: View) -> dict[str, np.ndarray]:
        """Boxes in the output and what is known of them, without those of which too little is seen."""
        boxes = view.boxes(example["boxes"].astype(np.float64) * ([header.height, header.width] * 2))
        seen = np.clip(boxes, 0, [view.rows, view.columns] * 2)
        kept = (seen[:, 2:] > seen[:, :2]).all(1)
        kept[kept] = _areas(seen[kept]) >= self.least_seen * _areas(boxes[kept])
        return {"boxes": seen[kept].astype(np.float32)} | {
            name: example[name][kept] for name in _OF_OBJECTS if name in example}


@dataclasses.dataclass(frozen=True)
class Fit(JointTransform):
    """The whole image at a wanted scale, in one of a few shapes: for detection, and for evaluation.

    The short side becomes ``short``, unless the long one would then exceed ``long`` or the image not fit into its
    bucket: then it becomes as large as these allow. No image is too large. An image belongs to the bucket in which it
    can be largest, and of several such to the one with the fewest pixels. It is written into the ``out`` that is
    given, of whatever shape; without the pipeline's buckets that is ``shape``.
    """

    short: int | tuple[int, ...] = 800
    """Pixels of the short side; of several, one at random for each image. Without ``random`` the last."""
    long: int = 1333
    """Most pixels of the long side."""
    buckets: tuple[tuple[int, int], ...] = ()
    """(height, width) of what is written. None given: one for wide and one for tall images, just large enough for
    ``short`` and ``long``, in multiples of 32."""

    def __post_init__(self):
        super().__post_init__()
        sides = (self.short,) if isinstance(self.short, int) else self.short
        if not sides or not all(_whole(s) for s in (*sides, self.long)) or max(sides) > self.long:
            raise UserError(f"Fit: short={self.short!r} and long={self.long!r}; expected pixels, short at most long")
        for bucket in self.buckets:
            _check_shape("Fit.buckets", bucket)
        if len(set(self.buckets)) < len(self.buckets):
            raise UserError(f"Fit.buckets is {self.buckets!r}; expected each shape once")

    @property
    def sides(self) -> tuple[int, ...]:
        """The short sides to choose from."""
        sides = (self.short,) if isinstance(self.short, int) else self.short
        return sides if self.random else sides[-1:]

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        if self.buckets:
            return tuple((*bucket, 3) for bucket in self.buckets)
        short, long = (-(-side // 32) * 32 for side in (max(self.sides), self.long))
        return ((short, long, 3), (long, short, 3)) if short < long else ((long, long, 3),)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The largest of ``shapes``."""
        return max(self.shapes, key=lambda shape: shape[0] * shape[1])

    def bucket(self, sizes: np.ndarray) -> np.ndarray:
        height, width = np.maximum(sizes, 1).T
        wanted = self._wanted(height, width, max(self.sides))
        scales = np.stack([np.minimum(wanted, np.minimum(h / height, w / width)) for h, w, _ in self.shapes], 1)
        by_pixels = np.argsort([h * w for h, w, _ in self.shapes], kind="stable")
        largest = scales[:, by_pixels] >= scales.max(1, keepdims=True) * (1 - 1e-9)
        return by_pixels[largest.argmax(1)]

    def view(self, height: int, width: int, out: tuple[int, int], rng: np.random.Generator) -> View:
        side = self.sides[int(len(self.sides) * rng.random())]
        flip = self.random and self.flip and rng.random() < 0.5
        scale = min(float(self._wanted(height, width, side)), out[0] / height, out[1] / width)
        rows, columns = (min(max(round(length * scale), 1), most)
                         for length, most in zip((height, width), out, strict=True))
        return View(0, 0, height, width, rows, columns, flip)

    def _wanted(self, height, width, side: int):
        """The scale of images of this size, were there room for them."""
        return np.minimum(side / np.minimum(height, width), self.long / np.maximum(height, width))


@dataclasses.dataclass(frozen=True)
class ScaleJitter(JointTransform):
    """The image at a random scale; a random window of it, or all of it where it is smaller, in one fixed shape.

    With ``of="image"`` it is the training crop of segmentation (Chen et al., "Rethinking atrous convolution", 2017,
    section 4.1); with ``of="fit"`` and ``scale=(0.1, 2.0)`` large-scale jitter for detection (Ghiasi et al., "Simple
    copy-paste", 2021, section 3).
    """

    size: int | tuple[int, int] = 513
    """Pixels of both sides of what is written, or (height, width)."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Least and largest factor; uniform. Without ``random`` their mean, and the central window."""
    of: Literal["image", "fit"] = "image"
    """What the factor multiplies: the image's own size, or that at which it just fits into ``size``."""
    least_seen: float = 0.1
    """A box of which a smaller share of its area is in the window is dropped; the others are clipped."""

    def __post_init__(self):
        super().__post_init__()
        _check_shape("ScaleJitter.size", self._size)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < 100:
            raise UserError(f"ScaleJitter.scale is {self.scale!r}; expected (least, most) with 0 < least <= most < 100")
        if self.of not in ("image", "fit"):
            raise UserError(f"ScaleJitter.of is {self.of!r}; expected 'image' or 'fit'")
        if not 0 <= self.least_seen <= 1:
            raise UserError(f"ScaleJitter.least_seen is {self.least_seen!r}; expected a share from 0 to 1")

    @property
    def _size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self._size, 3)

    def view(self, height: int, width: int, out: tuple[int, int], rng: np.random.Generator) -> View:
        share, down, across, mirror = rng.random(4).tolist() if self.random else (0.5, 0.5, 0.5, 1.0)
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * share
        if self.of == "fit":
            factor *= min(out[0] / height, out[1] / width)
        top, tall, rows = _window(height, factor, out[0], down)
        left, wide, columns = _window(width, factor, out[1], across)
        return View(top, left, tall, wide, rows, columns, self.flip and mirror < 0.5)


def _window(length: int, factor: float, room: int, place: float) -> tuple[int, int, int]:
    """Of one side: start and length of the window in pixels of the image, and its length in the output. The window has
    whole pixels, so that what is decoded is exactly what boxes and masks are moved by."""
    scaled = max(round(length * factor), 1)
    if scaled <= room:
        return 0, length, scaled
    inside = min(max(round(room * length / scaled), 1), length)
    return int((length - inside + 1) * place), inside, room


def class_mask(example: Example, size: tuple[int, int]) -> np.ndarray:
    """uint8 ``[height, width]``, the ``class_mask`` of an example whose image has this size.

    Raises:
      BadImageError: it is of another size, of colours instead of classes, damaged, or has values above 255.
    """
    mask, id_ = example["class_mask"], example["id"]
    if isinstance(mask, bytes):
        mask = decode_mask(mask, id_)
    mask = mask.reshape(mask.shape[:2]) if mask.ndim == 3 and mask.shape[2] == 1 else mask
    if mask.ndim != 2:
        raise BadImageError(id_, f"its mask has {mask.ndim} axes {list(mask.shape)}; expected [height, width] of class "
                            "numbers")
    check_mask_size(id_, mask, size)
    if mask.dtype != np.uint8:
        if mask.size and not 0 <= mask.min() <= mask.max() <= 255:
            raise BadImageError(id_, f"its mask has the value {mask.max()}; expected 0 to 255, of at most 254 classes")
        mask = mask.astype(np.uint8)
    return mask


def check_mask_size(id_: str, mask: np.ndarray, size: tuple[int, int]) -> None:
    """Raises: BadImageError when a mask ``[h, w]`` is not of its image's ``size`` = (height, width)."""
    if mask.shape != tuple(size):
        raise BadImageError(id_, f"its mask is of {mask.shape[1]} x {mask.shape[0]} pixels and the image of "
                            f"{size[1]} x {size[0]}; expected the same size")


def check_mask_values(id_: str, mask: np.ndarray, classes: int) -> None:
    """Raises: BadImageError when a class mask speaks of a class that there is not; UserError when it could not."""
    if classes >= VOID:
        raise UserError(f"the data has {classes:,} classes, and class masks tell at most {VOID - 1} apart; choose "
                        "fewer, for example by curate=(Vocabulary(...),), or give the transform masks=False where "
                        "they are not needed")
    if unknown := np.unique(mask[(mask > classes) & (mask != VOID)]).tolist():
        raise BadImageError(id_, f"its mask has the values {', '.join(map(str, unknown[:10]))}; expected 0 "
                            f"(background), 1 to {classes} (the classes) and {VOID} (void)")


def decode_mask(data: bytes, id_: str) -> np.ndarray:
    """A PNG of class numbers: uint8 or uint16 ``[height, width]``, of a palette the indices and not their colours.

    Raises:
      BadImageError: it cannot be decoded, or it holds colours.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in _MASK_MODES:
                raise BadImageError(id_, f"its mask is an image of colours ({image.mode}), not of class numbers; "
                                    "expected a PNG with a palette, as VOC's, or of grey values: replace each colour "
                                    "by its class")
            found = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(id_, f"its mask cannot be decoded ({error})") from error
    if found.dtype == np.uint8:
        return found
    return found.astype(np.uint8 if found.dtype == np.bool_ else np.uint16)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_shape(name: str, shape: tuple[int, int]) -> None:
    if len(shape) != 2 or not all(_whole(side) for side in shape):
        raise UserError(f"{name} has {shape!r}; expected (height, width) in pixels")
