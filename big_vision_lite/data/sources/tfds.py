"""Any TFDS dataset prepared as ArrayRecord or TFRecord, with random access and without TensorFlow.

    Tfds("cifar10", "train"), Tfds("voc/2012", "validation"), Tfds("imagenet2012:5.1.0", "train[:1%]")

Images are returned as stored, encoded. Preparing most datasets of TFDS's catalogue needs TensorFlow, reading them does
not; another machine or environment can prepare them:

    pip install 'big_vision_lite[tf]'
    tfds build cifar10 --file_format=array_record
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import reprlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from big_vision_lite.data.columns import Columns
from big_vision_lite.data.source import OBJECT_ARRAYS, Dataset, Example, Source
from big_vision_lite.data.sources.prepared_labels import read_labels, rows_of
from big_vision_lite.data.sources.record_files import AGAIN, Part, Records, check_parts, open_parts
from big_vision_lite.data.sources.tfds_features import MIRROR, layout_of, swap_xy
from big_vision_lite.errors import UserError, first_line, nearest, reading
from big_vision_lite.system.parse import read_json, read_text

ALL = "all"
"""TFDS's name for all splits together."""

SOURCE = "source.json"
"""In the folder of a prepared dataset: of each split its source's fingerprint and length, and the images per file."""
CONTENT = "content.json"
"""Beside it: of each split a hash of its examples."""

_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class Tfds(Source):
    """A prepared TFDS dataset."""

    name: str
    """``dataset`` or ``dataset/config``, optionally with ``:version``; the default is the newest version found."""
    split: str = "train"
    """A split or a part of one, in TFDS's notation: ``train[:10%]``; ``all`` stands for all splits together."""
    data_dir: str | None = None
    """TFDS's data directory; None for ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``."""
    image_key: str | None = None
    """The feature of the image; None for ``image`` or the only image feature."""
    label_key: str | None = None
    """The feature of the labels, or of objects with labels; None for the first of label, labels, objects."""
    min_confidence: float = 5
    """If labels have a confidence, as in Open Images (0 to 10): the lowest that counts. Labels of confidence 0, which a
    person found to be wrong, never count."""

    precedence: ClassVar[int] = 2

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        if not (path / "dataset_info.json").is_file():
            return None
        return {"name": f"{path.parent.name}:{path.name}", "data_dir": str(path.parent.parent)}

    def open(self) -> TfdsDataset:
        """Raises: UserError when the dataset is not prepared, a file is missing or truncated, the split is empty, there
        is no such split or feature, or a feature is of a class that TFDS does not have and nobody has imported."""
        return TfdsDataset(find(self.name, self.data_dir), self.split, self.image_key, self.label_key,
                           self.min_confidence)


def default_data_dir(data_dir: str | None = None) -> str:
    """TFDS's data directory."""
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def find(name: str, data_dir: str | None = None) -> str:
    """The folder of a prepared dataset, ``<data_dir>/<name>/<version>``.

    Raises:
      UserError: there is none; the message says where it was searched and how to prepare it.
    """
    bare, _, version = name.partition(":")
    root = default_data_dir(data_dir)
    folder = os.path.join(root, bare)
    versions = [v for v in _names(folder) if _VERSION.fullmatch(v)]
    if version and versions and version not in versions:
        raise UserError(f"{bare} has no version {version!r} in {folder}{nearest(version, versions)}")
    if versions:
        newest = max(versions, key=lambda v: [int(part) for part in v.split(".")])
        return os.path.join(folder, version or newest)
    prepared = ["/".join(path) for dataset in _names(root)
                for path in [(dataset,), *((dataset, config) for config in _names(os.path.join(root, dataset)))]
                if any(_VERSION.fullmatch(v) for v in _names(os.path.join(root, *path)))]
    raise UserError(f"dataset {name!r} is not prepared: no version of it in {folder}{nearest(bare, prepared)}; "
                    f"prepare it with `tfds build {bare} --file_format=array_record` (TFDS's own builders need pip "
                    "install 'big_vision_lite[tf]'; reading needs no TensorFlow), or name another data_dir")


def _names(folder: str) -> list[str]:
    """The entries of a folder, without unfinished preparations."""
    from etils import epath

    remote = "mount the bucket (gcsfuse) or copy the data, and name that folder as data_dir"
    with reading(repr(folder), remote if "://" in folder else ""):  # whose package may be missing
        path = epath.Path(folder)
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    return sorted(name for name in names if not name.startswith("incomplete."))


class TfdsDataset(Dataset):
    """One split of a prepared TFDS dataset. Threads may share it; other processes open the files themselves.

    Attributes:
      folder: the version's folder.
    """

    def __init__(self, folder: str, split: str, image_key: str | None = None, label_key: str | None = None,
                 min_confidence: float = 5):
        self.folder, self._min_confidence = folder, min_confidence
        self._lock = threading.Lock()
        self._opened = None
        _check_regular(folder)
        info = _builder(folder).info
        split_info = _split(info, split, folder)
        self._length = split_info.num_examples
        self._name = f"{info.full_name}/{split}"
        self._layout, label = layout_of(info.features, image_key, label_key, folder)
        self._image_id, self._mirror = (key if key in info.features else None for key in ("image/id", MIRROR))
        self.classes = tuple(label.names)
        self.multi_label = info.features[self._layout.label] is not label
        self._format = info.file_format.value
        self._parts = [Part(os.fspath(f.filename), f.skip, f.take if f.take >= 0 else f.examples_in_shard - f.skip,
                            f.examples_in_shard) for f in split_info.file_instructions]
        check_parts(self._parts, self._format)
        parts = [(os.path.basename(name), skip, take) for name, skip, take, _ in self._parts]
        confidence = min_confidence if self._layout.confidence else None
        identity = repr((self._name, parts, split_info.num_bytes, self._layout, confidence, *_prepared_from(folder)))
        self.fingerprint = "tfds-" + hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        files = {name: list(zip(map(os.path.basename, split.filepaths), split.shard_lengths, strict=True))
                 for name, split in info.splits.items()}
        self._rows = rows_of(parts, files)
        self._lengths = {name: split.num_examples for name, split in info.splits.items()}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[Example]:
        indices = [range(self._length)[index] for index in indices]
        records, parse, _ = self._open()
        return [self._from_record(records, index, parse, self._example) for index in indices]

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(self._length)[index]
        records, _, parse = self._open()
        return self._from_record(records, index, parse, self._id_and_labels)

    def label_columns(self) -> Columns | None:
        """Those that `data.tools.prepare` wrote; None where it did not, or labels are read from other features."""
        if self._layout.id != "id" or self._layout.label not in ("label", "labels"):
            return None
        path = Path(self.folder, CONTENT)
        content = read_json(path, dict[str, str], "prepare the dataset again") if path.exists() else {}
        return read_labels(self.folder, self._rows, content, self._lengths)

    def _from_record(self, records: Records, index: int, parse: Callable[[bytes], dict], make: Callable[..., Any]
                     ) -> Any:
        """``make(features, index)`` of a record's features. Raises: UserError when the record is damaged."""
        try:
            return make(parse(records[index]), index)
        except UserError:
            raise
        except Exception as error:  # ArrayRecord, protobuf and TFDS raise several kinds, which do not name the file
            for part in self._parts:
                if index < part.take:
                    break
                index -= part.take
            raise UserError(f"{part.filename}: record {part.skip + index} cannot be read ({first_line(error)}); if the "
                            "file is damaged, copy or prepare it again") from error

    def _example(self, features: dict, index: int) -> Example:
        at = self._layout
        if not all(isinstance(features[key], bytes) for key in (at.image, *at.masks)):
            raise TypeError(f"{at.image!r} is not the bytes of an image")
        example = {"id": self._id(features, index), "image": features[at.image], "labels": self._labels(features)}
        if at.box:
            objects = features[at.objects]
            example["boxes"] = swap_xy(np.asarray(objects[at.box], np.float32).reshape(-1, 4))
            example["box_labels"] = np.asarray(objects[at.object_label], np.int32)
            self._check_labels(example["box_labels"])
            for name, array in OBJECT_ARRAYS.items():
                if array.feature in at.more and (self._mirror or not array.points):
                    example[name] = np.asarray(objects[array.feature]).astype(array.dtype)
        if self._image_id:
            example["image_id"] = int(features[self._image_id])
        if self._mirror:
            example[MIRROR] = np.asarray(features[MIRROR], np.int32)
        return example | {key: features[key] for key in at.masks}

    def _id_and_labels(self, features: dict, index: int) -> tuple[str, np.ndarray]:
        return self._id(features, index), self._labels(features)

    def _id(self, features: dict, index: int) -> str:
        key = self._layout.id
        return features[key].decode(errors="surrogateescape") if key else f"{self._name}/{index}"

    def _labels(self, features: dict) -> np.ndarray:
        """Sorted, without duplicates. A label of -1 stands for a hidden one."""
        at = self._layout
        if at.label == at.objects:
            labels = np.asarray(features[at.objects][at.object_label])
            if at.confidence:
                confidence = np.asarray(features[at.objects][at.confidence])
                labels = labels[(confidence > 0) & (confidence >= self._min_confidence)]
        else:
            labels = np.atleast_1d(features[at.label])
        self._check_labels(labels)
        return np.unique(labels[labels >= 0]).astype(np.int32)

    def _check_labels(self, labels: np.ndarray) -> None:
        if labels.size and labels.max() >= len(self.classes):
            raise ValueError(f"label {labels.max()}, but there are {len(self.classes)} classes")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lock": None, "_opened": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _open(self):
        """The stored records, a parser of all features that are used, and a parser of id and labels only."""
        with self._lock:
            if self._opened is None:
                import tensorflow_datasets as tfds

                _allow_open_files(len(self._parts))
                features = _builder(self.folder).info.features
                at = self._layout

                def parser(*keys: str | None):
                    needed = tfds.features.FeaturesDict({key: features[key] for key in set(keys) - {None}})
                    raw = {key: tfds.decode.SkipDecoding() for key, feature in needed.items()
                           if isinstance(feature, tfds.features.Image)}
                    return functools.partial(needed.deserialize_example_np, decoders=raw)

                self._opened = (open_parts(self._parts, self._format),
                                parser(at.image, at.label, at.objects, at.id, self._image_id, self._mirror,
                                       *at.masks),
                                parser(at.label, at.id))
            return self._opened


def _prepared_from(folder: str) -> list[str]:
    """The hash of all examples that `data.tools.prepare` recorded, or in older folders what they were prepared from.
    Without it, other labels of the same size would go unnoticed."""
    path = next((path for name in (CONTENT, SOURCE) if (path := Path(folder, name)).exists()), None)
    return [read_text(path, "prepare the dataset again")] if path else []


def _allow_open_files(count: int) -> None:
    """Raises the limit on open files: readers keep every file open, and ImageNet alone reaches the usual limit."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/dev/fd")) + count + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        needed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silences TFDS, which warns beside errors and progress bars."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_regular(folder: str) -> None:
    """Raises: UserError when a file is a pipe or a device, which may never end."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # not where the folder is in a bucket
        for entry in entries:
            if not (entry.is_file() or entry.is_dir()) and os.path.exists(entry.path):
                raise UserError(f"{entry.path} is not a regular file; {AGAIN}")


def _builder(folder: str):
    """The ``ReadOnlyBuilder`` of a prepared dataset. Raises: UserError when it is damaged, or reading it runs code."""
    import tensorflow_datasets as tfds
    from etils import epath

    with reading(folder, "it is not a prepared TFDS dataset, or damaged: prepare it again"):
        features = epath.Path(folder, "features.json")
        for name in _class_names(json.loads(features.read_text())):
            # TFDS imports the module of any class that is named there, and so would run code that came with data.
            if not name.startswith("tensorflow_datasets.") and name.rpartition(".")[0] not in sys.modules:
                raise UserError(f"{features} names the class {reprlib.repr(name)}; expected classes of "
                                "tensorflow_datasets: import its module first, if you trust it")
        return tfds.builder_from_directory(folder)


def _class_names(value: Any) -> Iterator[str]:
    """The names of classes in features.json, of any version of TFDS; some hold JSON in texts."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(entry, str):
                yield from _class_names(entry)
            elif key in ("pythonClassName", "python_class_name", "type"):
                yield entry
            elif key == "json":
                yield from _class_names(json.loads(entry))
    elif isinstance(value, list):
        for entry in value:
            yield from _class_names(entry)


def _split(info, split: str, folder: str):
    """The ``SplitInfo``, all of whose files exist. Raises: UserError."""
    name = info.full_name.rpartition("/")[0]
    again = f"prepare it again with `tfds build {name} --file_format=array_record`"
    if ALL in info.splits:
        raise UserError(f"{folder} has a split named {ALL!r}, which TFDS reserves for all splits together; {again}")
    for part in split.split("+"):
        base = part.split("[")[0].strip()
        if base not in info.splits and base != ALL:
            raise UserError(f"{info.full_name} has no split {part.strip()!r}{nearest(base, info.splits)}")
    if info.file_format is None or info.file_format.value not in ("array_record", "tfrecord"):
        file_format = info.file_format.value if info.file_format else "unknown"
        raise UserError(f"{folder} has the file format {file_format}, expected array_record or tfrecord; {again}")
    if any(length < 0 for name in info.splits for length in info.splits[name].shard_lengths):
        raise UserError(f"{folder} has a shard of a negative length in dataset_info.json; {again}")
    # TFDS parses "train[:10%]" and templates of file names.
    with without_warnings(), reading(f"split {split!r} of {info.full_name}"):
        split_info = info.splits[split]
        files = {os.path.basename(f.filename) for f in split_info.file_instructions}
    if not split_info.num_examples:
        raise UserError(f"split {split!r} of {folder} is empty; choose another split or {again}")
    if missing := files - set(_names(folder)):
        raise UserError(f"{folder} lacks {len(missing)} files of {split!r}, such as {reprlib.repr(min(missing))}; "
                        f"{again}")
    return split_info
