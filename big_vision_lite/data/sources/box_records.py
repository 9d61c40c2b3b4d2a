"""What sources with boxes share: boxes clipped to their image, and datasets of image files with boxes."""

from __future__ import annotations

import dataclasses

import numpy as np

from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example
from big_vision_lite.data.sources.files import FileDataset, text_at


@dataclasses.dataclass
class BoxCount:
    """What happened to a source's boxes; printed by ``bvl data inspect``."""

    boxes: int = 0
    clipped: int = 0
    """Boxes clipped to their image."""
    dropped: int = 0
    """Boxes without any area inside their image."""


def clip_boxes(boxes: np.ndarray, height: int, width: int, count: BoxCount) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as fractions of the image, without empty ones.

    Args:
      boxes: float64 ``[n, 4]``, (x1, y1, x2, y2) in pixels, referring to pixel edges.
      height, width: of the image, in pixels.
      count: updated in place.

    Returns:
      float32 ``[m, 4]`` from 0 to 1, and the indices of these boxes among those given, int64 ``[m]``.
    """
    size = np.array([width, height, width, height], np.float64)
    inside = np.clip(boxes, 0, size)
    valid = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(1))
    count.boxes += len(boxes)
    count.dropped += len(boxes) - len(valid)
    count.clipped += int((inside[valid] != boxes[valid]).any(1).sum())
    return (inside[valid] / size).astype(np.float32), valid


@dataclasses.dataclass(eq=False)
class BoxDataset(FileDataset):
    """Image files and the boxes of their objects. An image's labels are the classes of its boxes.

    Attributes:
      count: what happened to the boxes.
      sizes: int32 ``[images, 2]``: (height, width) as annotated.
    """

    count: BoxCount
    sizes: np.ndarray
    objects: Ragged  # the class of each object, in the order of the file
    boxes: np.ndarray

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return text_at(self.names, index), np.unique(self.objects.row(index))

    def image_sizes(self) -> np.ndarray:
        return self.sizes

    def _example(self, index: int) -> tuple[Example, slice]:
        """The image with its boxes, and the range of its objects among all objects."""
        span = slice(int(self.objects.ends[index - 1]) if index else 0, int(self.objects.ends[index]))
        objects = {"boxes": self.boxes[span], "box_labels": self.objects.row(index)}
        return super().__getitem__(index) | objects, span
