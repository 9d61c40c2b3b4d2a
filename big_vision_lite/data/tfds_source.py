"""Any TFDS data set that is prepared as ArrayRecord, read at random without TensorFlow.

    Tfds("cifar10", "train"), Tfds("voc/2012", "validation"), Tfds("imagenet2012:5.1.0", "train[:1%]")

Images come out as the encoded bytes that were stored. Preparing most data sets needs TensorFlow, reading them
does not; another machine or environment can prepare them:

    pip install tensorflow tensorflow-datasets
    tfds build cifar10 --file_format=array_record
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import threading
from typing import NamedTuple

import numpy as np

from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import UserError, nearest

LABEL_KEYS = ("label", "labels", "objects")
"""Where labels are looked for, in this order."""

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_KEPT = ("instance_mask", "class_mask")


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
    """The feature that holds labels, or objects with a label each; None for the first of `LABEL_KEYS`."""

    def open(self) -> TfdsRecords:
        """Access to the records.

        Raises:
          UserError: the data set is not there, is not ArrayRecord or lacks files or records, or there is no
            such split or feature.
        """
        return TfdsRecords(find(self.name, self.data_dir), self.split, self.image_key, self.label_key)


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
        f" with `tfds build {bare} --file_format=array_record` (most data sets need TensorFlow for that, none"
        " for reading) or name another data_dir"
    )


def _names(folder: str) -> list[str]:
    """What a folder holds, but for preparations that did not finish."""
    from etils import epath

    path = epath.Path(folder)
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    return sorted(name for name in names if not name.startswith("incomplete."))


class _Layout(NamedTuple):
    """Which features hold what."""

    image: str
    label: str
    objects: str | None
    """A sequence of objects; the same as ``label`` where labels are stored with objects only."""
    object_label: str | None
    box: str | None
    visible: str | None
    kept: tuple[str, ...]
    """Features that are handed on under the same name."""


class TfdsRecords(Records):
    """One split of a prepared TFDS data set. Threads may share it; in another process it opens files anew."""

    def __init__(self, folder: str, split: str, image_key: str | None = None, label_key: str | None = None):
        self._folder, self._split = folder, split
        self._lock = threading.Lock()
        self._opened = None
        info = _builder(folder).info
        chosen = _split(info, split, folder)
        self._length = chosen.num_examples
        self._name = f"{info.full_name}/{split}"
        self._layout, label = _layout(info.features, image_key, label_key, folder)
        self.classes = tuple(label.names)
        self.multi_label = info.features[self._layout.label] is not label
        parts = [(os.path.basename(f.filename), f.skip, f.take) for f in chosen.file_instructions]
        identity = repr((self._name, parts, chosen.num_bytes, self._layout))
        self.fingerprint = "tfds-" + hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        index = range(self._length)[index]
        data, parse = self._open()
        record = parse(data[index])
        at = self._layout
        example = {"image": record[at.image]}
        example["id"] = record["id"].decode() if "id" in at.kept else f"{self._name}/{index}"
        label = record[at.label]
        if at.objects:
            objects = record[at.objects]
            box_labels = np.asarray(objects[at.object_label], np.int32)
            label = box_labels if at.objects == at.label else label
            if at.box:
                example["boxes"] = np.asarray(objects[at.box], np.float32).reshape(-1, 4)
                example["box_labels"] = box_labels
            if at.visible:
                example["visible"] = np.asarray(objects[at.visible], np.float32)
        label = np.atleast_1d(label)
        example["labels"] = np.unique(label[label >= 0]).astype(np.int32)  # -1 stands for a hidden label
        return example | {key: record[key] for key in at.kept if key != "id"}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lock": None, "_opened": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _open(self):
        """The records as bytes, and the function that parses one."""
        with self._lock:
            if self._opened is None:
                import tensorflow_datasets as tfds
                from array_record.python.array_record_data_source import ArrayRecordDataSource

                info = _builder(self._folder).info
                at = self._layout
                keys = {at.image, at.label, at.objects, *at.kept} - {None}
                needed = tfds.features.FeaturesDict({key: info.features[key] for key in keys})
                images = [key for key in keys if isinstance(needed[key], tfds.features.Image)]
                raw = {key: tfds.decode.SkipDecoding() for key in images}
                data = ArrayRecordDataSource(info.splits[self._split].file_instructions)
                self._opened = data, functools.partial(needed.deserialize_example_np, decoders=raw)
            return self._opened


def _builder(folder: str):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # whatever a damaged folder raises
        raise UserError(f"{folder} is not a prepared TFDS data set ({error}); prepare it again") from error


def _split(info, split: str, folder: str):
    """The ``SplitInfo``, all of whose files are there."""
    base = split.split("[")[0]
    if base not in info.splits:
        raise UserError(f"{info.full_name} has no split {split!r}{nearest(base, info.splits)}")
    name = info.full_name.rpartition("/")[0]
    again = f"prepare it again with `tfds build {name} --file_format=array_record`"
    if info.file_format is None or info.file_format.value != "array_record":
        found = info.file_format.value if info.file_format else "of no known format"
        raise UserError(f"{folder} is {found}, expected array_record; {again}")
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


def _layout(features, image_key: str | None, label_key: str | None, folder: str):
    """Where images, labels and objects are, and the ``ClassLabel``."""
    import tensorflow_datasets as tfds

    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    first = "image" if "image" in images else (images or [None])[0]
    image = _checked("image_key", image_key, first, images, folder)
    plain, objects = {}, {}
    for key, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, tfds.features.ClassLabel):
            plain[key] = inner
        elif isinstance(feature, tfds.features.Sequence) and isinstance(inner, tfds.features.FeaturesDict):
            of_type = {type(f): k for k, f in reversed(inner.items())}
            name = "label" if "label" in inner else of_type.get(tfds.features.ClassLabel)
            if name and isinstance(inner[name], tfds.features.ClassLabel):
                box = of_type.get(tfds.features.BBoxFeature)
                objects[key] = inner[name], (key, name, box, "visible" if "visible" in inner else None)
    labels = plain | {key: label for key, (label, _) in objects.items()}
    first = next((key for key in (*LABEL_KEYS, *labels) if key in labels), None)
    label_key = _checked("label_key", label_key, first, labels, folder)
    label = labels[label_key]
    beside = label_key if label_key in objects else "objects"
    same = beside in objects and objects[beside][0].names == label.names
    known = objects[beside][1] if same else (None,) * 4
    kept = [key for key in _KEPT if key in images]
    if "id" in features and isinstance(features["id"], tfds.features.Text):
        kept.append("id")
    return _Layout(image, label_key, *known, tuple(kept)), label


def _checked(field: str, asked: str | None, first: str | None, valid, folder: str) -> str:
    if asked in valid or (asked is None and first):
        return asked or first
    kind = "image" if field == "image_key" else "feature with class labels"
    if not valid:
        raise UserError(f"{folder} has no {kind}; choose another data set")
    raise UserError(f"{folder} has no {kind} {field}={asked!r}{nearest(str(asked), valid)}")
