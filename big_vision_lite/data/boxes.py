"""Boxes as data sets write them, made into those of an `Example`: clipped, without empty ones, counted."""

from __future__ import annotations

import dataclasses

import numpy as np

from big_vision_lite.data.files import Strings, read_file
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Records


@dataclasses.dataclass
class BoxCount:
    """What became of a source's boxes; part of what inspecting it tells."""

    boxes: int = 0
    clipped: int = 0
    """Reached out of their image; what is inside is kept."""
    dropped: int = 0
    """Without any area inside their image."""


def fitted(boxes: np.ndarray, height: int, width: int, count: BoxCount) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as fractions of the image, and which of those given they are.

    Args:
      boxes: float64 ``[n, 4]``, (ymin, xmin, ymax, xmax) in pixels, edges of pixels and not their centres.
      height, width: of the image, in pixels.
      count: is added to.

    Returns:
      float32 ``[m, 4]`` within 0 to 1, and int64 ``[m]``.
    """
    size = np.array([height, width, height, width], np.float64)
    inside = np.clip(boxes, 0, size)
    kept = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(1))
    count.boxes += len(boxes)
    count.dropped += len(boxes) - len(kept)
    count.clipped += int((inside[kept] != boxes[kept]).any(1).sum())
    return (inside[kept] / size).astype(np.float32), kept


@dataclasses.dataclass(eq=False)
class BoxRecords(Records):
    """Images in files and the boxes of their objects, compact. An image's labels are the classes of its boxes.

    Attributes:
      count: what became of the boxes.
      sizes: int32 ``[images, 2]``: (height, width) as annotated.
    """

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    count: BoxCount
    root: str
    names: Strings
    sizes: np.ndarray
    objects: Ragged  # the class of each object, in the file's order
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return self.names.at(index), np.unique(self.objects.row(index))

    def image_sizes(self) -> np.ndarray:
        return self.sizes

    def _example(self, index: int) -> tuple[Example, slice]:
        """The image with its boxes, and where its objects are among all."""
        id_, labels = self.labels(index)
        here = slice(int(self.objects.ends[index - 1]) if index else 0, int(self.objects.ends[index]))
        return {"id": id_, "image": read_file(f"{self.root}/{id_}", id_), "labels": labels, "boxes": self.boxes[here],
                "box_labels": self.objects.row(index)}, here
