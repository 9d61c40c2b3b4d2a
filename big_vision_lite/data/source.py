"""The one interface between places where examples are stored and the pipeline that reads them."""

from __future__ import annotations

import abc
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_lite.data.cache import cache_dir, kept
from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.errors import BadImageError

Example = dict[str, Any]
"""One example. Always there:

``id``      str, stable over runs and machines
``image``   bytes (an encoded file) or uint8 ``[height, width, 3]``
``labels``  int32 ``[n]``, the ids of the classes that are present, without repeats

Where the source knows objects:

``boxes``         float32 ``[n, 4]``, (ymin, xmin, ymax, xmax) as fractions of the image, TFDS's order
``box_labels``    int32 ``[n]``
``visible``       float32 ``[n]``, the share of each object's pixels that nothing covers
``instance_mask`` bytes (PNG) or uint8 ``[height, width]``; 0 background, k the k-th box
``class_mask``    bytes (PNG) or uint16 ``[height, width]``; 0 background, c + 1 for class c, 255 undecided (VOC's void)
``crowd``         bool ``[n]``, boxes around many objects (COCO)
``difficult``     bool ``[n]``, objects that do not count in a score (VOC)
``area``          float32 ``[n]``, in square pixels as annotated (COCO)
``image_id``      int, COCO's number of the image

Where nothing is known but the pixels, ``unlabelled`` is True.
"""


OBJECTS = ("boxes", "box_labels", "visible", "crowd", "difficult", "area", "instance_mask", "class_mask")
"""What of an `Example` speaks of objects at their places."""


class Described:
    """What a model must know of its data. A run keeps it, so that it can be used where its data is not."""

    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    multi_label: bool
    """Whether an image may carry any number of labels; otherwise exactly one."""
    fingerprint: str
    """Names the content cheaply (no image is read): equal fingerprints mean equal examples in equal order."""
    unlabelled: bool = False
    """Nothing is known of the images but their pixels: they are there for their predictions alone."""


@dataclasses.dataclass(frozen=True)
class Description(Described):
    """The description of a source as it was when a run was trained on it."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    images: int
    sha256: str
    """Over the ids in order; see `data.manifest`."""

    def __len__(self) -> int:
        return self.images


class Records(Described, abc.ABC):
    """An opened source: random access by index. Picklable, because worker processes read it too."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def read(self, indices: Sequence[int]) -> list[Example | BadImageError]:
        """The examples at many indices, for a source that can do that better than one by one. One that cannot be read
        has its error in its place."""
        found: list[Example | BadImageError] = []
        for index in indices:
            try:
                found.append(self[index])
            except BadImageError as error:
                found.append(error)
        return found

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        """(id, labels) as ``self[index]`` has them, for those who look at all of a source: without reading the image
        where the source can."""
        example = self[index]
        return example["id"], example["labels"]

    def image_sizes(self) -> np.ndarray:
        """int32 ``[n, 2]``: (height, width) of every image, as far as it is known without decoding; (0, 0) where a
        header cannot be read. A source that does not know them reads every image once, and keeps what it found by
        the source's fingerprint."""
        place = cache_dir() / "image_sizes" / f"{self.fingerprint.replace('/', '_')}-{len(self)}.npy"
        if place.is_file():
            return np.load(place, allow_pickle=False)

        def piece(start: int) -> list[tuple[int, int]]:
            return [self._image_size(index) for index in range(start, min(start + 256, len(self)))]

        with concurrent.futures.ThreadPoolExecutor() as pool:
            sizes = np.concatenate([np.array(found, np.int32) for found in pool.map(piece, range(0, len(self), 256))])
        with kept(place) as temporary:
            np.save(temporary, sizes)
        return sizes

    def _image_size(self, index: int) -> tuple[int, int]:
        try:
            return image_size(self[index]["image"])
        except (BadImageError, DecodeError):
            return 0, 0


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """Where examples come from. A config names one; nothing is touched until ``open``."""

    @abc.abstractmethod
    def open(self) -> Records:
        """Check that the data is there and give access to it.

        Raises:
          UserError: the source is missing or empty; the message says what to do.
        """
