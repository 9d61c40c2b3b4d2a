"""Any source as a TFDS dataset of ArrayRecord files, without TensorFlow.

    prepare({"train": ImageFolder("/photos").open()}, Path("~/tensorflow_datasets"), "photos")
    Tfds("photos", "train")

Shards are written in ``DATA_DIR/NAME/incomplete.1.0.0``, which is renamed to the version when all are complete. After
an interruption of any kind, the same call resumes; if the source has changed meanwhile, it keeps the shards whose
images have not. A second process that asks for the same dataset waits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import msgspec
import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import Columns, id_keys, mapped_columns, read_columns, write_columns
from big_vision_lite.data.curation.label_index import check_columns
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.data.sources.emoji_art import ATTRIBUTION
from big_vision_lite.data.sources.emoji_scenes import VERSION as SCENES_VERSION
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.prepared_labels import label_path, write_labels
from big_vision_lite.data.sources.record_files import Part, check_parts
from big_vision_lite.data.sources.tfds import ALL, CONTENT, SOURCE, TfdsDataset, default_data_dir
from big_vision_lite.data.sources.tfds_features import MIRROR
from big_vision_lite.data.tools.shard_writer import PARTIAL, Run, locked, on_all_cores_of, quiet, write_records
from big_vision_lite.data.tools.tfds_records import encode, features_of
from big_vision_lite.errors import BadImageError, UserError, first_line, nearest, writing
from big_vision_lite.system.atomic import write_bytes, write_text
from big_vision_lite.system.parse import read_json
from big_vision_lite.system.paths import scheme

VERSION = "1.0.0"
SHARD_IMAGES = 4096
DONE, LABELS = ".done.json", ".labels.arrow"
"""Beside a finished shard of an unfinished dataset: a `_Done`, and the ids and labels of its records."""


def prepare(splits: dict[str, Dataset], data_dir: Path, name: str, *, processes: int | None = None,
            on_bad_image: str = "raise", shard_images: int = SHARD_IMAGES, run: Run | None = None) -> Path:
    """Write the splits, or resume writing them, and return the folder of the finished dataset.

    JPEG and PNG files are stored unchanged, other formats as PNG. Boxes, the `OBJECT_ARRAYS` and masks are stored if
    the first readable example has them.

    Args:
      data_dir: a local folder, or one that all machines of ``run`` have mounted at this place.
      name: of the dataset: lower-case letters, digits and ``_``.
      processes: worker processes; None: one per core.
      on_bad_image: when an image or its header cannot be read: "raise" stops and names it, "skip" leaves it out and
        lists it in bad_images.txt.
      shard_images: images per file.
      run: how jobs are run, as `tools.beam.on_beam` with a runner; None: in ``processes`` on this machine.

    Raises:
      UserError: another source was prepared under this name, a bad image, a name, split or class that TFDS cannot
        store, or a full disk.
    """
    _check_names(splits, data_dir, name, on_bad_image)
    folder = data_dir.expanduser() / name / VERSION
    _prepare(splits, folder, name, f"Prepared from {type(next(iter(splits.values()))).__name__}.",
             run or on_all_cores_of(processes), on_bad_image, shard_images)
    return folder


@dataclasses.dataclass(frozen=True)
class PreparedEmojiScenes(EmojiScenes):
    """Emoji scenes that the first ``open`` composes into ArrayRecord files, in a folder named after their content:

        ~/tensorflow_datasets/emoji_scenes/twemoji_48px_train-1000000_3f8a6c1e/1.0.0

    Only ``$TFDS_DATA_DIR`` chooses another place, because the config of a run that came from elsewhere must not.
    """

    def open(self) -> Dataset:
        scenes = super().open()
        content = hashlib.blake2b(self.fingerprint.encode(), digest_size=4).hexdigest()
        folder = Path(default_data_dir(), "emoji_scenes",
                      f"{self.style}_{self.size}px_{self.split}-{self.length}_{content}", f"{SCENES_VERSION}.0.0")
        if not folder.is_dir():
            scenes.multi_label = True  # labels are stored as a list even if each scene has one
            description = f"Scenes of {len(scenes.classes)} classes. {ATTRIBUTION[self.style]}"
            _prepare({self.split: scenes}, folder, "emoji_scenes", description, shard_images=SHARD_IMAGES,
                     options="group_size:1")
        return _PreparedScenes(self, os.fspath(folder))


class _PreparedScenes(TfdsDataset):
    """The examples of `EmojiScenes`, but with masks as PNG."""

    def __init__(self, source: EmojiScenes, folder: str):
        super().__init__(folder, source.split, label_key="labels")
        self.multi_label = source.objects != (1, 1)
        self.fingerprint = source.fingerprint
        self._size = source.size

    def image_sizes(self) -> np.ndarray:
        return np.full((len(self), 2), self._size, np.int32)


def _prepare(splits: dict[str, Dataset], folder: Path, name: str, description: str, run: Run | None = None,
             on_bad_image: str = "raise", shard_images: int = SHARD_IMAGES,
             options: str = "group_size:1,uncompressed") -> None:
    """Write the splits to ``folder``, whose name is the version, unless they are there. Raises: UserError."""
    source = {split: (dataset.fingerprint, len(dataset), shard_images) for split, dataset in splits.items()}
    work = folder.with_name(f"incomplete.{folder.name}")
    with writing(f"dataset {name} in {folder.parent}",
                 "make room there and start again to resume, or name another data_dir"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / "lock"):
            if folder.is_dir():
                other_name = f"choose a name other than {name!r}"
                if read_json(folder / SOURCE, dict[str, tuple[str, int, int]], other_name) != source:
                    raise UserError(f"{folder} exists and was prepared from another source or one that has changed "
                                    f"since, other splits or another shard size; {other_name}")
                return
            work.mkdir(exist_ok=True)
            run = run or on_all_cores_of(None)
            _write_splits(splits, work, name, description, run, on_bad_image, shard_images, options)
            write_text(work / SOURCE, json.dumps(source))
            work.rename(folder)


def _check_names(splits: dict[str, Dataset], data_dir: Path, name: str, on_bad_image: str) -> None:
    """Raises: UserError for what would fail later, or be read back as something else."""
    if scheme(data_dir):
        raise UserError(f"data_dir is {str(data_dir).replace(':/', '://')}, but datasets are written to local folders; "
                        "name one and copy the finished dataset")
    if on_bad_image not in ("raise", "skip"):
        raise UserError(f"on_bad_image is {on_bad_image!r}{nearest(on_bad_image, ('raise', 'skip'))}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"dataset name {name!r} is invalid; expected lower-case letters, digits and _, as in "
                        "my_photos")
    first, classes = next(iter(splits)), next(iter(splits.values())).classes
    for split, dataset in splits.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", split) or split == ALL:
            raise UserError(f"split name {split!r} is invalid; expected letters, digits and _, as in train, and not "
                            f"{ALL!r}, which TFDS reserves for all splits together")
        if dataset.classes != classes:
            raise UserError(f"split {split!r} has other classes than {first!r}; expected the same classes in all")
    seen: set[str] = set()
    for class_ in classes:  # TFDS writes one per line and strips the lines that it reads
        if class_ in seen or class_ != class_.strip() or not class_ or re.search(r"[\r\n\ud800-\udfff]", class_):
            raise UserError(f"class {class_!r} cannot be stored; expected unique names in UTF-8, on one line, without "
                            "leading or trailing spaces: rename it")
        seen.add(class_)


class _SharedDataset:
    """A dataset that pickles as the name of a file, which each process reads once: pickled into every job, the file
    list of a large source could take gigabytes."""

    def __init__(self, dataset: Dataset, path: str):
        self.dataset, self.path = dataset, path
        self._written = False

    def __reduce__(self):
        if not self._written:
            with open(self.path, "wb") as file:
                pickle.dump(self.dataset, file, protocol=pickle.HIGHEST_PROTOCOL)
            self._written = True
        return _load_shared, (self.path,)


@functools.lru_cache(maxsize=1)
def _load_shared(path: str) -> _SharedDataset:
    with open(path, "rb") as file:
        return _SharedDataset(pickle.load(file), path)


class _Shard(NamedTuple):
    """A file to write: the examples ``start`` to ``stop - 1`` of a dataset."""

    path: str
    dataset: _SharedDataset
    start: int
    stop: int
    keys: frozenset[str]
    keypoints: int
    on_bad_image: str
    options: str

    @property
    def source(self) -> str:
        """Identifies what the file is written from: equal ones mean equal files."""
        return repr((self.dataset.dataset.fingerprint, self.start, self.stop, sorted(self.keys), self.options))


class _Done(msgspec.Struct):
    """What is known of a finished shard."""

    source: str
    """`_Shard.source`"""
    content: str
    """A hash of the examples, as read."""
    images: int
    size: int
    """Of all records, in bytes."""
    bad: list[str]
    """A line per image that was left out."""


def _write_splits(splits: dict[str, Dataset], work: Path, name: str, description: str, run: Run,
                  on_bad_image: str, shard_images: int, options: str) -> None:
    import tensorflow_datasets as tfds

    first = next(iter(splits.values()))
    keys, keypoints = _example_keys(first, on_bad_image)
    shards: dict[str, list[_Shard]] = {}
    for split, dataset in splits.items():
        count = -(-len(dataset) // shard_images)
        template = tfds.core.ShardedFileTemplate(data_dir=work, dataset_name=name, split=split,
                                                 filetype_suffix="array_record")
        shared = _SharedDataset(dataset, os.fspath(work / f".{split}"))
        shards[split] = [
            _Shard(os.fspath(template.sharded_filepath(shard_index=k, num_shards=count)), shared, k * shard_images,
                   min((k + 1) * shard_images, len(dataset)), keys, keypoints, on_bad_image, options)
             for k in range(count)]
    _check_unfinished(work, [shard for of_split in shards.values() for shard in of_split], name, run)
    infos, bad, content = [], [], {}
    for split, of_split in shards.items():
        jobs = [(shard,) for shard in of_split]
        done = [result for _, result in run(_write_shard, jobs, f"preparing {name}, {split}", len(splits[split]))]
        if not sum(shard.images for shard in done):
            raise UserError(f"split {split!r} has no readable image; nothing was prepared")
        bad += [line for shard in done for line in shard.bad]
        content[split] = hashlib.blake2b("".join(shard.content for shard in done).encode(), digest_size=16).hexdigest()
        write_labels(work, split, (read_columns(_labels_path(shard)) for shard in of_split), content[split])
        check_columns(mapped_columns(label_path(work, split)), len(first.classes), multi_label=True)
        infos.append(tfds.core.SplitInfo(
            name=split, shard_lengths=[shard.images for shard in done], num_bytes=sum(shard.size for shard in done),
            filename_template=template.replace(split=split)))
    if bad:
        (work / "bad_images.txt").write_text("".join(f"{line}\n" for line in bad))
    features = features_of(first.classes, first.multi_label, keys, keypoints)
    with quiet():
        tfds.folder_dataset.write_metadata(data_dir=work, features=features, split_infos=infos, check_data=False,
                                           version=work.name.removeprefix("incomplete."), description=description,
                                           filename_template=infos[0].filename_template)
    write_text(work / CONTENT, json.dumps(content))
    for path in (*(path for end in (PARTIAL, DONE, LABELS) for path in work.glob(f"*{end}")),
                 *(work / f".{split}" for split in splits)):
        path.unlink(missing_ok=True)


def _check_unfinished(work: Path, shards: Sequence[_Shard], name: str, run: Run) -> None:
    """Look at what an interrupted preparation has left. If the source has changed since, its images are read again, and
    finished shards of the same images are kept. Files of no shard are removed.

    Raises:
      UserError: there are finished shards, and none of them is of this source.
    """
    finished = {path.name.removesuffix(DONE) for path in work.glob(f"{name}-*{DONE}")}
    known = [shard for shard in shards if os.path.basename(shard.path) in finished]
    changed = [shard for shard in known if (done := _done(shard)) and done.source != shard.source]
    images = sum(shard.stop - shard.start for shard in changed)
    checked = run(_check_shard, [(shard,) for shard in changed], f"checking {name}", images) if changed else []
    of_this_source = len(known) - len(changed) + sum(same for _, same in checked)
    if finished and not of_this_source:
        raise UserError(f"{work} is an unfinished preparation of another source; remove it, or choose a name other "
                        f"than {name!r}")
    expected = {os.path.basename(path) for shard in shards
                for path in (shard.path, f"{shard.path}{DONE}", f"{shard.path}{LABELS}", shard.dataset.path)}
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in expected:
            path.unlink()


def _example_keys(dataset: Dataset, on_bad_image: str) -> tuple[frozenset[str], int]:
    """The keys of the first readable example, without an image id that is text: TFDS's are numbers; and the number of
    keypoints per object."""
    for index in range(len(dataset)):
        try:
            example = dataset[index]
            keys = frozenset(example) - ({"image_id"} if isinstance(example.get("image_id"), str) else set())
            return keys, len(example.get(MIRROR, ()))
        except BadImageError:
            if on_bad_image == "raise":
                raise
    return frozenset(), 0


def _done(shard: _Shard) -> _Done | None:
    """What is known of a shard, if it is finished and complete."""
    try:
        done = read_json(Path(f"{shard.path}{DONE}"), _Done)
        check_parts([Part(shard.path, 0, done.images, done.images)], "array_record")
    except UserError:
        return None
    if (labels := read_columns(_labels_path(shard))) is None or len(labels) != done.images:
        return None
    must_rewrite = done.bad and shard.on_bad_image == "raise"  # written with "skip", and now nothing may be left out
    return None if must_rewrite else done


def _check_shard(shard: _Shard) -> tuple[int, bool]:
    """The shard's number of images, and whether its file holds what the source holds now; then its `_Done` says so."""
    images, done, content = shard.stop - shard.start, _done(shard), _hash(shard)
    for index in range(shard.start, shard.stop):
        with contextlib.suppress(BadImageError):
            _read(shard, index, content)
    if done is None or content.hexdigest() != done.content:
        return images, False
    _write_done(shard, msgspec.structs.replace(done, source=shard.source))
    return images, True


def _write_shard(shard: _Shard) -> tuple[int, _Done]:
    """Write one shard, unless it is complete already. Returns its number of images, and what is known of it."""
    done, dataset = _done(shard), shard.dataset.dataset
    if done and done.source == shard.source:
        return done.images, done
    features = features_of(dataset.classes, dataset.multi_label, shard.keys, shard.keypoints)
    content, bad, ids, labels = _hash(shard), [], [], []

    def serialized() -> Iterator[bytes]:
        for index in range(shard.start, shard.stop):
            try:
                example = _read(shard, index, content)
                record = encode(example, features, dataset.multi_label, shard.keys)
            except BadImageError as error:
                if shard.on_bad_image == "raise":
                    raise
                bad.append(str(error))
                continue
            ids.append(example["id"].encode(errors="surrogateescape"))
            labels.append(np.unique(example["labels"][example["labels"] >= 0]))  # as `TfdsDataset` reads them
            yield record

    try:
        count, size = write_records(shard.path, serialized(), shard.options)
    except RuntimeError as error:  # raised by ArrayRecord's writer, for instance when the disk is full
        raise OSError(first_line(error)) from error
    stored = pa.array(ids, pa.large_binary())
    write_columns([Columns(Ragged.of(labels), id_keys(stored), stored)], _labels_path(shard))
    done = _Done(shard.source, content.hexdigest(), count, size, bad)
    _write_done(shard, done)
    return count, done


def _labels_path(shard: _Shard) -> Path:
    return Path(f"{shard.path}{LABELS}")


def _write_done(shard: _Shard, done: _Done) -> None:
    write_bytes(Path(f"{shard.path}{DONE}"), msgspec.json.encode(done))


def _hash(shard: _Shard) -> Any:
    """Of all that decides a shard's content, before its examples."""
    dataset = shard.dataset.dataset
    rest = (dataset.classes, dataset.multi_label, sorted(shard.keys), shard.options)
    return hashlib.blake2b(repr(rest).encode(), digest_size=16)


def _read(shard: _Shard, index: int, content: Any) -> Example:
    """An example, which goes into the hash ``content``. Raises: BadImageError, which goes into it as well."""
    try:
        example = shard.dataset.dataset[index]
    except BadImageError as error:
        content.update(repr(error).encode())
        raise
    for key, value in sorted(example.items()):
        data = value if isinstance(value, bytes) else np.asarray(value).tobytes()
        form = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"{len(data)} bytes"
        content.update(f"{key}: {form}, {google_crc32c.value(data)}\n".encode())  # ten times as fast as blake2b
    return example
