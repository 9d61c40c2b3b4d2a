"""What sources with boxes share: boxes clipped to their image and turned with it, and datasets of such images."""

from __future__ import annotations

import dataclasses
import io
from typing import Annotated

import msgspec
import numpy as np
from PIL import ExifTags, Image

from big_vision_lite.data.decode import UPRIGHT, DecodeError, read_header
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example
from big_vision_lite.data.sources.files import FileDataset, text_at
from big_vision_lite.errors import BadImageError, UserError

PixelPosition = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
"""A coordinate in an annotation file, in pixels. What is further away from its image is no position in it."""
INVERSE = {5: 5, 6: 8, 7: 7, 8: 6}
"""The EXIF orientations that swap height and width, and the one that undoes each."""


@dataclasses.dataclass
class BoxCount:
    """What happened to a source's boxes; printed by ``bvl data inspect``."""

    boxes: int = 0
    clipped: int = 0
    """Boxes clipped to their image."""
    dropped: int = 0
    """Boxes without any area inside their image."""


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray, BoxCount]:
    """Boxes as fractions of their image, without empty ones.

    Args:
      boxes: float64 ``[n, 4]``, (x1, y1, x2, y2) in pixels, referring to pixel edges.
      sizes: int ``[n, 2]``: (height, width) of the image of each box, in pixels.
      where: what the boxes were read from, for the message.

    Returns:
      float32 ``[m, 4]`` from 0 to 1, the indices of these boxes among those given, int64 ``[m]``, and their numbers.

    Raises:
      UserError: there are boxes, and all of them are empty.
    """
    sides = np.concatenate([sizes[:, ::-1]] * 2, 1).astype(np.float64)
    inside = np.clip(boxes, 0, sides)
    valid = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(1))
    if len(boxes) and not len(valid):
        x1, y1, x2, y2 = boxes[0]
        reason = ("xmin is not below xmax" if x1 >= x2 else "ymin is not below ymax" if y1 >= y2 else
                  "it lies outside of its image")
        raise UserError(f"{where}: all {len(boxes):,} boxes are empty; of the first, which spans {x1:g} to {x2:g} "
                        f"across and {y1:g} to {y2:g} down, {reason}; correct the corners")
    clipped = int((inside[valid] != boxes[valid]).any(1).sum())
    return ((inside[valid] / sides[valid]).astype(np.float32), valid,
            BoxCount(len(boxes), clipped, len(boxes) - len(valid)))


def turn_boxes(boxes: np.ndarray, orientation: int) -> np.ndarray:
    """``[n, 4]`` (x1, y1, x2, y2), as fractions of the stored pixels, to fractions of the upright image."""
    transpose, flip_rows, flip_columns = UPRIGHT[orientation]
    x1, y1, x2, y2 = boxes.T
    if transpose:
        x1, y1, x2, y2 = y1, x1, y2, x2
    if flip_rows:
        y1, y2 = 1 - y2, 1 - y1
    if flip_columns:
        x1, x2 = 1 - x2, 1 - x1
    return np.stack([x1, y1, x2, y2], 1)


def turn_points(points: np.ndarray, orientation: int) -> np.ndarray:
    """Points ``[..., 2 or more]`` (x, y, ...), turned as `turn_boxes`."""
    transpose, flip_rows, flip_columns = UPRIGHT[orientation]
    x, y = points[..., 0], points[..., 1]
    if transpose:
        x, y = y, x
    return np.concatenate([np.stack([1 - x if flip_columns else x, 1 - y if flip_rows else y], -1), points[..., 2:]],
                          -1)


def turn_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """``[h, w]`` of the stored pixels to the upright image."""
    transpose, flip_rows, flip_columns = UPRIGHT[orientation]
    mask = mask.T if transpose else mask
    return np.ascontiguousarray(mask[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


@dataclasses.dataclass(eq=False)
class BoxDataset(FileDataset):
    """Image files and the boxes of their objects. An image's labels are the classes of its boxes.

    Annotations refer to an image of the annotated size. If that is the upright image's, boxes are used as they are; if
    it is the size of the stored pixels before EXIF turned them, boxes and masks are turned too. Where the two have the
    same size (a square image, or one that is mirrored or upside down), annotations are taken for those of the upright
    image. Sizes are compared when an image is read, which costs nothing but a look at its header.

    Attributes:
      count: what happened to the boxes.
      sizes: int32 ``[images, 2]``: (height, width) as annotated.
    """

    count: BoxCount
    sizes: np.ndarray
    objects: Ragged  # the class of each object, in the order of the file
    boxes: np.ndarray

    def __post_init__(self) -> None:
        self._orientations = np.zeros(len(self), np.uint8)  # 0: not known yet

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return text_at(self.names, index), np.unique(self.objects.row(index))

    def image_sizes(self) -> np.ndarray:
        return self.sizes

    def _example(self, index: int) -> tuple[Example, slice]:
        """The image with its boxes, and the range of its objects among all objects. Raises: BadImageError."""
        span = slice(int(self.objects.ends[index - 1]) if index else 0, int(self.objects.ends[index]))
        example = super().__getitem__(index)
        if not self._orientations[index]:
            self._orientations[index] = _orientation(example, tuple(self.sizes[index].tolist()))
        boxes, orientation = self.boxes[span], int(self._orientations[index])
        if orientation != 1:
            boxes, example["orientation"] = turn_boxes(boxes, orientation), orientation
        return example | {"boxes": boxes, "box_labels": self.objects.row(index)}, span


def _orientation(example: Example, annotated: tuple[int, int]) -> int:
    """The EXIF orientation by which annotations must be turned: 1 if they fit the upright image.

    Raises:
      BadImageError: the image has another size than the ``annotated`` (height, width), or no readable header.
    """
    image, id_ = example["image"], example["id"]
    try:
        header = read_header(image)
    except DecodeError as error:
        raise BadImageError(id_, str(error)) from error
    if annotated == (header.height, header.width):
        return 1
    if annotated == (header.width, header.height):
        orientation = header.orientation
        if header.reader == "pillow":  # which turns pixels itself
            with Image.open(io.BytesIO(image)) as opened:
                orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in INVERSE:
            return orientation
    raise BadImageError(id_, f"it has {header.width} x {header.height} pixels, but its annotations are of an image of "
                        f"{annotated[1]} x {annotated[0]}; boxes would be in the wrong place: give the image that was "
                        "annotated, or correct the size in the annotations")
