"""Indices of large files: ids, labels and places of their images as Arrow columns on disk, one Arrow file per file.

Each is written as soon as it is made, so that an interrupted scan goes on where it stopped, and a new file costs the
scan of that file alone. They end in a CRC-32C, which is verified when the dataset is opened, and are memory-mapped anew
in every process, so that a dataset is pickled without them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from big_vision_lite.data.columns import append_checksum, content_size, is_sound, mapped_batch
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.sources.files import check_classes, read_lines
from big_vision_lite.errors import UserError, nearest, writing
from big_vision_lite.system.cache import cached_file
from big_vision_lite.system.cores import usable_cores

FORMAT = 1
MAX_CLASSES = 1_000_000
"""Labels that are numbers are below this, because each number up to the largest is a class."""
MANY_FILES = 64
"""With at least as many, opening them again reads a list of the indices. Each index is verified when it is used."""
MAX_OPEN = 4096
"""Indices that are mapped at a time; Linux allows a process 65,530 maps."""
INFO = b"big_vision_lite"


class ShardInfo(msgspec.Struct):
    """What is known of a file without looking at its columns."""

    rows: int = 0
    digest: str = ""
    """Of all columns that decide ids, labels and sizes."""
    numbers: bool | None = None
    """Whether labels are numbers, and not names; None if there are none."""
    max_label: int = -1
    """Of numbers."""
    labels_per_image: tuple[int, int] = (0, 0)
    """Least and most."""
    row_groups: tuple[int, ...] = ()
    """Of a Parquet file: images in each."""
    group_bytes: int = 0
    """Of a Parquet file: of the images in its largest row group."""
    class_names: str = ""
    """Of a Parquet file: a hash of the class names in its metadata."""
    size: int = 0
    """Of a tar file: its bytes."""
    probe: int = 0
    """Of a tar file: a checksum of some of them."""
    labels_from: str = ""
    """Of a tar file: cls, or the field of its json files."""


class Index(NamedTuple):
    """The index of a file."""

    info: ShardInfo
    columns: pa.RecordBatch
    """``labels``, lists of numbers or of names, and whatever the source needs."""

    @classmethod
    def of(cls, labels: pa.Array, where: Callable[[int], str], identity: Sequence[pa.Array] = (),
           columns: dict[str, pa.Array] | None = None, **known: object) -> Index:
        """Args:
        labels: of each image, a number or a name, or a list of them. Nulls and -1 are no labels.
        where: names a row, for messages.
        identity: further columns that the digest covers.
        columns: to be stored.
        known: fields of `ShardInfo`.

        Raises:
          UserError: there is a label below -1 or of at least `MAX_CLASSES`, or labels are neither integers nor texts.
        """
        rows, values = _flat(labels, where)
        numbers = pa.types.is_integer(values.type)
        if numbers:
            stored, names = values.to_numpy(zero_copy_only=False).astype(np.int64), None
            wrong = np.flatnonzero((stored < -1) | (stored >= MAX_CLASSES))
            if len(wrong):
                raise UserError(f"{where(int(rows[wrong[0]]))}: label {stored[wrong[0]]:,}; expected 0 to "
                                f"{MAX_CLASSES - 1:,}, or -1 for a hidden label")
            rows, stored = rows[stored >= 0], stored[stored >= 0]
        else:
            encoded = pc.dictionary_encode(values)
            stored, names = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary
        count = int(stored.max(initial=-1)) + 1
        ragged = Ragged.from_pairs(rows, stored, len(labels), max(count, 1))
        flat = pa.array(ragged.values)
        if names is not None:
            flat = pa.DictionaryArray.from_arrays(flat, names)
        column = pa.LargeListArray.from_arrays(np.concatenate(([0], ragged.ends)), flat)
        digest = hashlib.blake2b(digest_size=16)
        for array in (ragged.ends, ragged.values):
            digest.update(np.ascontiguousarray(array))
        for array in (*identity, *(() if names is None else (names,))):
            digest.update(repr(array.to_pylist()).encode(errors="surrogateescape"))
        counts = ragged.counts()
        extent = int(counts.min(initial=MAX_CLASSES)), int(counts.max(initial=0))
        info = ShardInfo(len(labels), digest.hexdigest(), numbers if len(stored) else None,
                         count - 1 if numbers else -1, extent, **known)
        return cls(info, pa.RecordBatch.from_pydict({"labels": column, **(columns or {})}))


def _flat(labels: pa.Array, where: Callable[[int], str]) -> tuple[np.ndarray, pa.Array]:
    """Row and label of all labels that are not null. Raises: UserError when they are neither integers nor texts."""
    rows = np.arange(len(labels))
    if pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type) or pa.types.is_fixed_size_list(labels.type):
        rows = pc.list_parent_indices(labels).to_numpy(zero_copy_only=False).astype(np.int64)
        labels = pc.list_flatten(labels)
    if pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    kind = labels.type
    if pa.types.is_null(kind):
        labels = labels.cast(pa.int32())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        labels = labels.cast(pa.large_string())
    elif not pa.types.is_integer(kind):
        raise UserError(f"{where(0)}: labels are of type {kind}; expected integers, texts, or lists of them")
    known = labels.is_valid()
    return rows[known.to_numpy(zero_copy_only=False)], labels.filter(known)


class ShardIndex:
    """The indices of all files of a dataset.

    Args:
      paths: of the Arrow files.
      infos: what is known of each file.
      unwritten: the indices that are in no file, as where the cache cannot be written.
      names: all labels that are names, if that is known.
    """

    def __init__(self, paths: Sequence[Path], infos: Sequence[ShardInfo], unwritten: dict[int, pa.RecordBatch],
                 names: Sequence[str] | None = None):
        self.infos = infos
        self.ends = np.cumsum([info.rows for info in infos], dtype=np.int64)
        self._paths, self._unwritten, self._names = paths, unwritten, names
        self._classes: tuple[str, ...] = ()
        self._open = collections.OrderedDict[int, tuple[pa.RecordBatch, np.ndarray | None]]()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """The file of an image, and its row in it."""
        index = range(len(self))[index]
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - (int(self.ends[shard - 1]) if shard else 0)

    def names(self) -> Sequence[str]:
        """All labels that are names, sorted."""
        if self._names is None:
            self._names = sorted({name for shard, info in enumerate(self.infos) if info.numbers is False
                                  for name in self.columns(shard)["labels"].values.dictionary.to_pylist()})
        return self._names

    def columns(self, shard: int) -> pa.RecordBatch:
        return self._opened(shard)[0]

    def labels(self, shard: int, row: int) -> np.ndarray:
        """int32 ``[k]``, ascending."""
        batch, class_of = self._opened(shard)
        column = batch["labels"]
        start, stop = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
        if class_of is None:
            return column.values[start:stop].to_numpy().astype(np.int32)
        return np.sort(class_of[column.values[start:stop].indices.to_numpy()])

    def all_labels(self, shard: int) -> Ragged:
        """The `labels` of all images of a file."""
        batch, class_of = self._opened(shard)
        column = batch["labels"]
        ends, values = column.offsets.to_numpy()[1:].astype(np.int64), column.values
        if class_of is None:
            return Ragged(ends, values.to_numpy().astype(np.int32))
        ragged = Ragged(ends, class_of[values.indices.to_numpy()])
        return Ragged.from_pairs(ragged.rows(), ragged.values, len(ends), max(len(self._classes), 1))

    def choose_classes(self, given: tuple[str, ...] | str | None, owner: str, path: Callable[[int], str],
                       row_name: Callable[[int, int], str]) -> tuple[str, ...]:
        """The classes that labels are numbered by: those given, or all numbers up to the largest label, or all names.

        Args:
          given: names, or a text file with one name per line.
          owner: the source's name, for messages; ``path`` is that of a file, ``row_name`` describes an image.

        Raises:
          UserError: some labels are numbers and others names, or one is none of the classes; names the file and row.
        """
        kinds = {info.numbers: shard for shard, info in enumerate(self.infos) if info.numbers is not None}
        if len(kinds) > 1:
            raise UserError(f"{path(kinds[True])} has numbers as labels, but {path(kinds[False])} has names; expected "
                            "one or the other")
        if given is not None:
            classes = tuple(read_lines(given, f"{owner}.classes", "one name per line") if isinstance(given, str)
                            else given)
        elif False in kinds:
            classes = tuple(self.names())
        else:
            classes = tuple(map(str, range(max(info.max_label for info in self.infos) + 1)))
        check_classes(classes, f"{owner}.classes" if given is not None else path(0))
        with self._lock:
            self._classes = classes
            self._open.clear()
        unknown = False in kinds and not set(classes).issuperset(self.names())
        for shard, info in enumerate(self.infos):
            if info.numbers and info.max_label >= len(classes):
                row, label, count = self._first(shard, lambda values: values.to_numpy() >= len(classes))
                raise UserError(f"{row_name(shard, row)}: label {label:,}; expected 0 to {len(classes) - 1:,}, because "
                                f"there are {len(classes):,} classes ({count:,} such labels in this file); correct it "
                                f"or {owner}.classes")
            if info.numbers is False and unknown and (self._opened(shard)[1] < 0).any():
                class_of = self._opened(shard)[1]
                row, label, count = self._first(shard, lambda values, of=class_of: of[values.indices.to_numpy()] < 0)
                raise UserError(f"{row_name(shard, row)}: there is no class {label!r}{nearest(label, classes)} "
                                f"({count:,} such labels in this file)")
        return classes

    def _first(self, shard: int, is_wrong: Callable[[pa.Array], np.ndarray]) -> tuple[int, int | str, int]:
        """The row and label of the first wrong label of a file, and how many there are."""
        column = self.columns(shard)["labels"]
        wrong = np.flatnonzero(is_wrong(column.values))
        row = int(np.searchsorted(column.offsets.to_numpy(), wrong[0], side="right")) - 1
        return row, column.values[int(wrong[0])].as_py(), len(wrong)

    def _opened(self, shard: int) -> tuple[pa.RecordBatch, np.ndarray | None]:
        """The columns of a file, and if labels are names, the class of each name in its dictionary; -1 for none."""
        with self._lock:
            if shard not in self._open:
                batch = self._unwritten[shard] if shard in self._unwritten else self._read(shard)
                values, class_of = batch["labels"].values, None
                if pa.types.is_dictionary(values.type):
                    class_of = pc.index_in(values.dictionary, pa.array(self._classes, pa.large_string()))
                    class_of = class_of.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
                self._open[shard] = batch, class_of
                if len(self._open) > MAX_OPEN:
                    self._open.popitem(last=False)
            return self._open[shard]

    def _read(self, shard: int) -> pa.RecordBatch:
        path = self._paths[shard]
        if len(self._paths) >= MANY_FILES and not is_sound(path):
            raise UserError(f"{path}, the index of a file of the dataset, is missing or damaged; remove it if it is "
                            "there, and start again: it is then made again")
        return mapped_batch(path)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lock": None, "_open": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _open=collections.OrderedDict())


def open_index(count: int, read: Callable[[int], tuple[Path, Index | None]], make: Callable[[int], Index],
               known: Path, must_write: bool = False) -> ShardIndex:
    """The indices of files 0 to ``count`` - 1, read or made in threads.

    Args:
      known: a file of what is known of the indices of many files, whose name changes with any of these.
      read: where the index of a file belongs, and the index if it is there.
      must_write: an index that cannot be written is an error; otherwise it is kept in memory.

    Raises:
      UserError: as ``read`` and ``make``; or an index must be written and cannot be.
    """
    from rich.console import Console
    from rich.progress import track

    if count >= MANY_FILES and (index := _read_list(known, count)) is not None:
        return index

    def indexed(shard: int) -> tuple[Path, ShardInfo, pa.RecordBatch | None]:
        path, index = read(shard)
        if index is not None:
            return path, index.info, None
        index = make(shard)
        write_index(index, path, must_write)
        return path, index.info, None if path.is_file() else index.columns

    console = Console(stderr=True)
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
        paths, infos, columns = zip(*track(pool.map(indexed, range(count)), "indexing files", count, console=console,
                                           transient=True, disable=not console.is_terminal), strict=True)
    unwritten = {shard: batch for shard, batch in enumerate(columns) if batch is not None}
    index = ShardIndex(paths, infos, unwritten)
    if count >= MANY_FILES and not unwritten:
        with contextlib.suppress(OSError), cached_file(known) as temporary:
            temporary.write_bytes(msgspec.json.encode(_List([*map(os.fspath, paths)], [*infos], [*index.names()])))
            append_checksum(temporary)
    return index


class _List(msgspec.Struct):
    """What is known of the indices of many files."""

    paths: list[str]
    infos: list[ShardInfo]
    names: list[str]


def _read_list(known: Path, count: int) -> ShardIndex | None:
    """The indices of many files by the list of them; None if there is none, or an index that it names is gone."""
    if not is_sound(known):
        return None
    stored = known.read_bytes()
    listed = msgspec.json.decode(stored[: content_size(len(stored))], type=_List)
    paths = [Path(path) for path in listed.paths]
    if len(paths) != count or not all(path.is_file() for path in paths):
        return None
    return ShardIndex(paths, listed.infos, {}, listed.names)


def write_index(index: Index, path: Path, must_write: bool = False) -> None:
    """Write the index of a file. Raises: UserError when it ``must`` be written and cannot be."""
    with writing(path, "make room there") if must_write else contextlib.suppress(OSError):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        if must_write and not os.access(path.parent, os.W_OK):
            raise PermissionError("its folder cannot be written")
        schema = index.columns.schema.with_metadata({INFO: msgspec.json.encode(index.info)})
        with cached_file(path) as temporary:
            with pa.ipc.new_file(str(temporary), schema) as file:
                file.write(index.columns)
            append_checksum(temporary)


def read_index(path: Path) -> Index | None:
    """None if there is none, or it is damaged."""
    if not is_sound(path):
        return None
    columns = mapped_batch(path)
    return Index(msgspec.json.decode(columns.schema.metadata[INFO], type=ShardInfo), columns)
