"""Any TFDS data set that is prepared as ArrayRecord or TFRecord, read at random without TensorFlow.

    Tfds("cifar10", "train"), Tfds("voc/2012", "validation"), Tfds("imagenet2012:5.1.0", "train[:1%]")

Images come out as the encoded bytes that were stored. Preparing most data sets of TFDS's catalogue needs TensorFlow,
reading them does not; another machine or environment can prepare them:

    pip install 'big_vision_lite[tf]'
    tfds build cifar10 --file_format=array_record
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import threading
from collections.abc import Sequence

import numpy as np

from big_vision_lite.data.shards import Part, Shards, check_parts, open_parts
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.data.tfds_layout import OBJECT_KEYS, layout_of
from big_vision_lite.errors import UserError, nearest

_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class Tfds(Source):
    """A prepared TFDS data set."""

    name: str
    """``dataset``, ``dataset/config``, each also with ``:version``; without it the newest that is there."""
    split: str = "train"
    """A split or a part of one, as TFDS writes it: ``train[:10%]``."""
    data_dir: str | None = None
    """Where data sets are; None for ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``."""
    image_key: str | None = None
    """The feature that holds the image; None for ``image`` or the only image there is."""
    label_key: str | None = None
    """The feature that holds labels, or objects with a label each; None for the first of label, labels, objects."""
    min_confidence: float = 5
    """Where each label says how sure it is, as in Open Images (0 to 10): the least that counts. A label of confidence 0
    was found to be wrong by a person, and never counts."""

    def open(self) -> TfdsRecords:
        """Access to the records.

        Raises:
          UserError: the data set is not there, a file of it is missing or cut, it has no records, or there is no such
        split or feature.
        """
        return TfdsRecords(find(self.name, self.data_dir), self.split, self.image_key, self.label_key,
                           self.min_confidence)


def default_data_dir(data_dir: str | None = None) -> str:
    """Where TFDS keeps data sets, unless told otherwise."""
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def find(name: str, data_dir: str | None = None) -> str:
    """The folder of a prepared data set, ``<data_dir>/<name>/<version>``.

    Raises:
      UserError: there is none; says where it looked and how to prepare it.
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
    prepared = [
        "/".join(path)
        for dataset in _names(root)
        for path in [(dataset,), *((dataset, config) for config in _names(os.path.join(root, dataset)))]
        if any(_VERSION.fullmatch(v) for v in _names(os.path.join(root, *path)))
    ]
    close = nearest(bare, prepared)
    raise UserError(
        f"data set {name!r} is not prepared: no version of it in {folder}{close}; prepare it"
        f" with `tfds build {bare} --file_format=array_record` (for TFDS's own builders: pip install"
        " 'big_vision_lite[tf]'; reading needs no TensorFlow), or name another data_dir"
    )


def _names(folder: str) -> list[str]:
    """What a folder holds, but for preparations that did not finish."""
    from etils import epath

    try:
        path = epath.Path(folder)
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    except Exception as error:  # what a missing package for a remote file system raises, and what that raises
        if "://" not in folder:
            raise
        raise UserError(f"cannot look into {folder!r} ({error}); mount the bucket (gcsfuse) or copy the data, and name "
                        "that folder as data_dir") from None
    return sorted(name for name in names if not name.startswith("incomplete."))


class TfdsRecords(Records):
    """One split of a prepared TFDS data set. Threads may share it; in another process it opens files anew.

    Attributes:
      folder: of the data set's version.
    """

    def __init__(self, folder: str, split: str, image_key: str | None = None, label_key: str | None = None,
                 min_confidence: float = 5):
        self.folder, self._min_confidence = folder, min_confidence
        self._lock = threading.Lock()
        self._opened = None
        info = _builder(folder).info
        chosen = _split(info, split, folder)
        self._length = chosen.num_examples
        self._name = f"{info.full_name}/{split}"
        self._layout, label = layout_of(info.features, image_key, label_key, folder)
        self._image_id = "image/id" if "image/id" in info.features else None
        self.classes = tuple(label.names)
        self.multi_label = info.features[self._layout.label] is not label
        self._format = info.file_format.value
        self._parts = [Part(os.fspath(f.filename), f.skip, f.take if f.take >= 0 else f.examples_in_shard - f.skip,
                            f.examples_in_shard) for f in chosen.file_instructions]
        check_parts(self._parts, self._format)
        parts = [(os.path.basename(name), skip, take) for name, skip, take, _ in self._parts]
        confidence = min_confidence if self._layout.confidence else None
        identity = repr((self._name, parts, chosen.num_bytes, self._layout, confidence, *_prepared_from(folder)))
        self.fingerprint = "tfds-" + hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[Example]:
        indices = [range(self._length)[index] for index in indices]
        data, parse, _ = self._open()
        return [self._example(parse(self._stored(data, index)), index) for index in indices]

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(self._length)[index]
        data, _, parse = self._open()
        record = parse(self._stored(data, index))
        return self._id(record, index), self._labels(record)

    def _stored(self, data: Shards, index: int) -> bytes:
        try:
            return data[index]
        except RuntimeError as error:  # ArrayRecord's reader does not say which file it found damaged
            for part in self._parts:
                if index < part.take:
                    break
                index -= part.take
            reason = " ".join(str(error).split())
            raise UserError(f"{part.filename}: record {part.skip + index} cannot be read ({reason}); if it is "
                            "damaged, copy or prepare it again") from error

    def _example(self, record: dict, index: int) -> Example:
        at = self._layout
        example = {"id": self._id(record, index), "image": record[at.image], "labels": self._labels(record)}
        if at.box:
            objects = record[at.objects]
            example["boxes"] = np.asarray(objects[at.box], np.float32).reshape(-1, 4)
            example["box_labels"] = np.asarray(objects[at.object_label], np.int32)
            for key in at.more:
                name, dtype = OBJECT_KEYS[key]
                example[name] = np.asarray(objects[key]).astype(dtype)
        if self._image_id:
            example["image_id"] = int(record[self._image_id])
        return example | {key: record[key] for key in at.masks}

    def _id(self, record: dict, index: int) -> str:
        id_ = self._layout.id
        return record[id_].decode(errors="surrogateescape") if id_ else f"{self._name}/{index}"

    def _labels(self, record: dict) -> np.ndarray:
        """Sorted, each once. A label of -1 stands for one that is hidden."""
        at = self._layout
        if at.label == at.objects:
            labels = np.asarray(record[at.objects][at.object_label])
            if at.confidence:
                confidence = np.asarray(record[at.objects][at.confidence])
                labels = labels[(confidence > 0) & (confidence >= self._min_confidence)]
        else:
            labels = np.atleast_1d(record[at.label])
        return np.unique(labels[labels >= 0]).astype(np.int32)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lock": None, "_opened": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _open(self):
        """The records as bytes, and functions that parse all that is needed of one, or id and labels alone."""
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
                                parser(at.image, at.label, at.objects, at.id, self._image_id, *at.masks),
                                parser(at.label, at.id))
            return self._opened


def _prepared_from(folder: str) -> list[str]:
    """What `data.prepare` notes of the source: other labels may take just as many bytes."""
    path = os.path.join(folder, "source.json")
    if "://" in folder or not os.path.isfile(path):
        return []
    with open(path) as file:
        return [file.read()]


def _allow_open_files(count: int) -> None:
    """Readers keep every file open, and ImageNet alone has as many files as many systems allow by default."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/dev/fd")) + count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _builder(folder: str):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # whatever a damaged folder raises
        raise UserError(f"{folder} is not a prepared TFDS data set ({error}); prepare it again") from error


def _split(info, split: str, folder: str):
    """The ``SplitInfo``, all of whose files are there."""
    for part in split.split("+"):
        base = part.split("[")[0].strip()
        if base not in info.splits:
            raise UserError(f"{info.full_name} has no split {part.strip()!r}{nearest(base, info.splits)}")
    name = info.full_name.rpartition("/")[0]
    again = f"prepare it again with `tfds build {name} --file_format=array_record`"
    if info.file_format is None or info.file_format.value not in ("array_record", "tfrecord"):
        found = info.file_format.value if info.file_format else "of no known format"
        raise UserError(f"{folder} is {found}, expected array_record or tfrecord; {again}")
    try:
        chosen = info.splits[split]
    except Exception as error:  # TFDS's own parser of "train[:10%]"
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot read split {split!r} of {info.full_name}: {reason}") from error
    if not chosen.num_examples:
        raise UserError(f"split {split!r} of {folder} has no records; choose another split or {again}")
    missing = {os.path.basename(f.filename) for f in chosen.file_instructions} - set(_names(folder))
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} files of {split!r}, such as {min(missing)}; {again}")
    return chosen
