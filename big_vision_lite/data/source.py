"""The interface between stored examples and the pipeline that reads them."""

from __future__ import annotations

import abc
import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from big_vision_lite.data.columns import Columns
from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.keypoints import labelled
from big_vision_lite.errors import BadImageError
from big_vision_lite.system.cache import cached_array, cached_path

Example = dict[str, Any]
"""One example. Required keys:

``id``      str, stable across runs and machines
``image``   bytes (an encoded file) or uint8 ``[height, width, 3]``
``labels``  int32 ``[n]``, the ids of the classes present, without duplicates

If the source has objects:

``boxes``         float32 ``[n, 4]``, (x1, y1, x2, y2) as fractions of the image
``box_labels``    int32 ``[n]``
``visible``       float32 ``[n]``, the fraction of each object that is not occluded
``instance_mask`` bytes (PNG) or uint8 ``[height, width]``; 0 background, k for the k-th box
``class_mask``    bytes (PNG) or uint16 ``[height, width]``; 0 background, c + 1 for class c, 255 void
``crowd``         bool ``[n]``, boxes around groups of objects (COCO)
``difficult``     bool ``[n]``, objects ignored in scores (VOC)
``area``          float32 ``[n]``, in square pixels as annotated (COCO)
``keypoints``     float32 ``[n, k, 3]``, x and y as fractions of the image, and visibility: 0 not labelled, 1 occluded,
                  2 visible
``keypoint_mirror`` int32 ``[k]``, for each keypoint the index of the one that takes its place in a mirrored image, as
                  the right eye takes the left eye's
``image_id``      int or str, COCO's id of the image
``orientation``   int, the EXIF orientation by which boxes and masks were turned, if they were (COCO, VOC)

If another network has labelled it:

``confidence``    float32, the probability of the most probable label; 1 for labels that were given
``candidates``    int32 ``[k]``, the most probable classes, most probable first
``probabilities`` float32 ``[k]``, of these

``unlabelled`` is True if there are no annotations at all.
"""

SOFT_LABELS = ("confidence", "candidates", "probabilities")
"""Entries of an `Example` that contradict any other labels than those it came with."""


class ObjectArray(NamedTuple):
    """An array of an `Example` with one entry per object."""

    feature: str
    """Its name in TFDS datasets."""
    dtype: type
    shape: tuple[int | None, ...] = ()
    """Of each object's entry. None: the number of keypoints."""
    points: bool = False
    """Whether an entry holds points, in rows of x, y and visibility. Joint transforms move them like boxes, and swap
    those that a mirrored image swaps."""


OBJECT_ARRAYS: dict[str, ObjectArray] = {
    "visible": ObjectArray("visible", np.float32),
    "crowd": ObjectArray("is_crowd", np.bool_),
    "difficult": ObjectArray("is_difficult", np.bool_),
    "area": ObjectArray("area", np.float32),
    "keypoints": ObjectArray("keypoints", np.float32, (None, 3), points=True),
}
"""What an `Example` may hold about each object beside its box and label. An array added here is read from TFDS
datasets, stored by `prepare`, and filtered with the boxes by curation and by joint transforms."""


def without_objects(example: Example) -> Example:
    """The example without its objects: boxes, arrays about them and masks."""
    object_keys = {"boxes", "box_labels", "instance_mask", "class_mask", *OBJECT_ARRAYS}
    return {key: value for key, value in example.items() if key not in object_keys}


def has_keypoints(example: Example) -> np.ndarray:
    """bool ``[n]``: which objects have labelled keypoints and are no crowd."""
    with_labels = labelled(example["keypoints"]).any(1)
    return with_labels & ~example.get("crowd", np.zeros(len(with_labels), np.bool_))


class DatasetInfo:
    """What a model needs to know about its data. It is saved with a run, which is then usable without the data."""

    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    multi_label: bool
    """Whether an image may have any number of labels; otherwise exactly one."""
    fingerprint: str
    """Identifies the data. Equal fingerprints mean the same ids, labels and other annotations in the same order, and
    the same images as far as can be told without reading them: files of the same sizes and modification times (of
    `TarImages` also the tar files). With ``fingerprint="content"``, a field of sources of files, every image is read
    once, and equal fingerprints mean the same bytes. A prepared TFDS dataset is identified by its metadata and what it
    was prepared from, a generated one by its parameters."""
    unlabelled: bool = False
    """The images have no annotations: they can only be predicted on."""
    notes: tuple[str, ...] = ()
    """What users should know of the data, such as files that are ignored; one line each."""


@dataclasses.dataclass(frozen=True)
class SavedDatasetInfo(DatasetInfo):
    """A run's record of the dataset it was trained on."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    images: int
    sha256: str
    """Of the ids in order; see `data.curation.manifest`."""

    def __len__(self) -> int:
        return self.images


class Strata(NamedTuple):
    """Parts of a dataset, and how often they are seen in training."""

    of: np.ndarray
    """uint8 ``[n]``: the stratum of each example."""
    weights: tuple[float, ...]
    """Of each stratum: its share of the images seen, relative to the others'."""


class Dataset(DatasetInfo, abc.ABC):
    """An opened source: random access by index. Must be picklable, because worker processes read it too."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def read(self, indices: Sequence[int]) -> list[Example | BadImageError]:
        """The examples at these indices, with an error in place of each that cannot be read. Overridden where a batch
        of reads is cheaper than single ones."""
        examples: list[Example | BadImageError] = []
        for index in indices:
            try:
                examples.append(self[index])
            except BadImageError as error:
                examples.append(error)
        return examples

    def read_one(self, index: int) -> Example:
        """The example that `read` gives, for ``__getitem__`` where `read` is overridden. Raises: BadImageError."""
        (example,) = self.read([index])
        if isinstance(example, BadImageError):
            raise example
        return example

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        """(id, labels) of ``self[index]``, without reading the image if the source can do that."""
        example = self[index]
        return example["id"], example["labels"]

    def label_columns(self) -> Columns | None:
        """Ids, keys and labels of all examples, where the source has them as columns; None: they are read one by one.

        Raises:
          UserError: they are damaged, or belong to other data.
        """
        return None

    def column_pieces(self) -> Iterator[Columns] | None:
        """`label_columns` in pieces, where the source knows ids and labels of many examples at once; they are then
        written to one file. None: they are read one by one."""
        return None

    def image_sizes(self) -> np.ndarray:
        """int32 ``[n, 2]``: (height, width) of every image, from its header; (0, 0) if that cannot be read. By default
        every file is read once, and the sizes are cached under the dataset's fingerprint."""
        def chunk(start: int) -> np.ndarray:
            return np.array([self._image_size(i) for i in range(start, min(start + 256, len(self)))], np.int32)

        def read() -> np.ndarray:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                return np.concatenate(list(pool.map(chunk, range(0, len(self), 256))))

        name = f"{self.fingerprint.replace('/', '_')}-{len(self)}-2.npy"
        return cached_array(cached_path("image_sizes", name), read)

    def _image_size(self, index: int) -> tuple[int, int]:
        try:
            return image_size(self[index]["image"])
        except (BadImageError, DecodeError):
            return 0, 0

    def objects_with_keypoints(self) -> np.ndarray:
        """int32 ``[m, 3]``: image, number within the image, and class of every object that has labelled keypoints and
        is no crowd. By default every example is read once, and the result is cached under the dataset's fingerprint."""
        def chunk(start: int) -> list[tuple[int, int, int]]:
            indices = range(start, min(start + 256, len(self)))
            return [(index, int(k), int(example["box_labels"][k]))
                    for index, example in zip(indices, self.read(indices), strict=True)
                    if not isinstance(example, BadImageError) and "keypoints" in example
                    for k in np.flatnonzero(has_keypoints(example))]

        def read() -> np.ndarray:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                rows = [row for rows in pool.map(chunk, range(0, len(self), 256)) for row in rows]
            return np.array(rows, np.int32).reshape(-1, 3)

        name = f"{self.fingerprint.replace('/', '_')}-{len(self)}.npy"
        return cached_array(cached_path("objects_with_keypoints", name), read)

    def strata(self) -> Strata | None:
        """Parts of the dataset with given shares of the training stream; None: every example has the same."""
        return None


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """Where examples come from, as named in a config. Nothing is read before ``open``."""

    precedence: ClassVar[int] = 1
    """If several formats recognise a path, the one with the highest precedence is used."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        """The fields of a source of this format at ``path``, given on the command line; None if there is none."""
        return None

    def count_files(self) -> int:
        """How many files have an index of their own, of sources of many large files; 0 for others."""
        return 0

    def index_files(self, numbers: Sequence[int]) -> None:
        """Make the indices of some of these files, unless they are there. Raises: UserError, as `open`."""
        raise NotImplementedError

    @abc.abstractmethod
    def open(self) -> Dataset:
        """Check that the data exists and open it.

        Raises:
          UserError: the data is missing, empty or malformed; the message says what to do.
        """
