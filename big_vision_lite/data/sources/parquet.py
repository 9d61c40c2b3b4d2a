"""Parquet files of encoded images and their labels, in the layout of Hugging Face datasets."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from big_vision_lite.data.columns import Columns, joined_ids, with_keys
from big_vision_lite.data.source import Dataset, Example, Source
from big_vision_lite.data.sources.files import MAX_FILE_BYTES, Fingerprint
from big_vision_lite.data.sources.remote import open_file, url_of
from big_vision_lite.data.sources.shard_index import FORMAT, Index, ShardIndex, open_index, read_index, write_index
from big_vision_lite.data.sources.shards import Shards, find_shards, first_shard
from big_vision_lite.errors import BadImageError, UserError, first_line, nearest, reading
from big_vision_lite.system.cache import cached_path

CACHE_BYTES = 256 << 20
"""Of row groups that each process keeps, besides those in use."""
LARGE_GROUP = 32 << 20
"""Bytes of a row group from which random access is worth a note."""
AGAIN = "copy or download it again"


@dataclasses.dataclass(frozen=True)
class Parquet(Source):
    """Parquet files with a column of images, as a struct of ``bytes`` and ``path`` or as bytes alone, and a column of
    labels: a number, a name, or a list of them.

    Labels are numbers of classes, whose names are ``classes``, or those in the metadata that Hugging Face's library
    writes, or else 0, 1, ... up to the largest label of these files. If labels are names, the classes are these,
    sorted. A split may lack some of them: give ``classes`` then. Null and -1 are hidden labels.

    The id of an example is ``FILE/ROW``, or what ``id_key`` has. Labels are read once and cached per file, until its
    path, size or time changes. An image is read with all images of its row group: files with large ones are read
    faster after ``bvl data prepare``.
    """

    path: str = ""
    """A file, a pattern such as ``data/train-*.parquet``, or a folder whose files, also those in folders named ``data``
    or like a split, are named ``SPLIT-*``."""
    split: str | None = None
    """train, validation or test; None for all files, if they are of one split or given by a pattern."""
    image_key: str | None = None
    """The column of images; None for ``image``, or the only one that can be."""
    label_key: str | None = None
    """The column of labels; None for ``label`` or ``labels``."""
    id_key: str | None = None
    """The column of ids, texts or integers that are unique over all files."""
    classes: tuple[str, ...] | str | None = None
    """Names in order, or a text file with one name per line."""
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`: sizes and times are those of the Parquet files."""

    precedence: ClassVar[int] = 1

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"path": str(path)} if first_shard(path, ".parquet") else None

    def open(self) -> ParquetDataset:
        """Reads the labels of all files, or those cached; no image is read.

        Raises:
          UserError: there are no files, or one is damaged, lacks a column, has other class names than the first, or a
            label that is none of the classes.
        """
        shards, columns = self._files()
        paths = [_index_path(shards, shard, columns) for shard in range(len(shards.names))]
        index = open_index(len(paths), lambda shard: (paths[shard], read_index(paths[shard])),
                           lambda shard: _index(shards.path(shard), self, columns),
                           cached_path("parquet", f"{shards.key_of_all(columns)}-{FORMAT}.json"))
        if not len(index):
            raise UserError(f"Parquet: the files at {self.path!r} have no rows; expected one per image")
        classes = self.classes
        if classes is None:
            for shard, info in enumerate(index.infos):
                if info.class_names != index.infos[0].class_names:
                    raise UserError(f"{shards.path(shard)} has other class names in its metadata than "
                                    f"{shards.path(0)}; expected the same, or names in Parquet.classes")
            classes = _class_names(_schema(shards.path(0)), columns.label)
        classes = index.choose_classes(classes, "Parquet", shards.path,
                                       lambda shard, row: _row(shards.path(shard), row))
        identity = columns, classes, [info.digest for info in index.infos]
        fingerprint = shards.fingerprint("parquet", identity, self.fingerprint)
        dataset = ParquetDataset(classes, columns.many_labels, fingerprint, index, shards, columns,
                                 RowGroups(shards, columns.image))
        largest = max(info.group_bytes for info in index.infos)
        if largest > LARGE_GROUP:
            dataset.notes = (f"row groups have up to {largest / 2**20:,.0f} MiB, all of which is read for one image at "
                             "random; bvl data prepare makes files in which each image is read alone",)
        return dataset


    def _files(self) -> tuple[Shards, Fields]:
        shards = find_shards(self.path, ".parquet", self.split, "Parquet")
        return shards, _columns(shards.path(0), self)

    def count_files(self) -> int:
        return len(self._files()[0].names)

    def index_files(self, numbers: Sequence[int]) -> None:
        shards, columns = self._files()
        for shard in numbers:
            if read_index(path := _index_path(shards, shard, columns)) is None:
                write_index(_index(shards.path(shard), self, columns), path, must_write=True)


def _index_path(shards: Shards, shard: int, columns: Fields) -> Path:
    return cached_path("parquet", f"{shards.key(shard, columns)}-{FORMAT}.arrow")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What is read of the files."""

    image: str
    """Path of the bytes' column, such as ``image.bytes``."""
    label: str
    id: str | None
    many_labels: bool
    """Labels are lists."""

    def __str__(self) -> str:
        return f"images in {self.image!r} and {'lists of labels' if self.many_labels else 'labels'} in {self.label!r}"


def _row(path: str, row: int) -> str:
    return f"{path} row {row:,}"


def _open(path: str) -> pa.NativeFile:
    """Raises: OSError."""
    return pa.PythonFile(open_file(path), "r") if url_of(path) else pa.OSFile(path)


def _schema(path: str) -> pa.Schema:
    """Raises: UserError."""
    with reading(path, AGAIN), _open(path) as file:
        return pq.read_schema(file)


def _bytes_path(field: pa.Field) -> str | None:
    """The column of bytes of a field that can hold images."""
    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return field.name
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        inner = field.type.field("bytes").type
        return f"{field.name}.bytes" if pa.types.is_binary(inner) or pa.types.is_large_binary(inner) else None
    return None


def _columns(path: str, source: Parquet) -> Fields:
    """Raises: UserError when a file lacks a column, or it has another type."""
    schema = _schema(path)
    shown = f"{path} has the columns " + ", ".join(f"{field.name} ({_short(field.type)})" for field in schema)

    def column(name: str, what: str) -> pa.Field:
        at = schema.get_field_index(name)
        if at < 0:
            raise UserError(f"{shown}; expected one column {name!r} of {what}{nearest(name, schema.names)}")
        return schema.field(at)

    images = {field.name: place for field in schema if (place := _bytes_path(field))}
    image = source.image_key or ("image" if "image" in images or len(images) != 1 else next(iter(images)))
    if image not in images:
        column(image, "images")
        raise UserError(f"{shown}; expected images in {image!r}, as bytes or a struct of bytes and path, or another "
                        "column as Parquet.image_key")
    label = source.label_key or next((name for name in ("label", "labels") if name in schema.names), None)
    if label is None:
        raise UserError(f"{shown}; expected a column 'label' or 'labels', or Parquet.label_key")
    kind = column(label, "labels").type
    many = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if source.id_key is not None:
        of = column(source.id_key, "ids").type
        if not (pa.types.is_integer(of) or pa.types.is_string(of) or pa.types.is_large_string(of)):
            raise UserError(f"{shown}; expected texts or integers in {source.id_key!r}, Parquet.id_key")
    return Fields(images[image], label, source.id_key, many)


def _short(kind: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """From the metadata of Hugging Face's library, whose versions write lists in three ways; None if it has none."""
    try:
        feature = msgspec.json.decode((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        while not (isinstance(feature, dict) and "names" in feature):
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return tuple(map(str, feature["names"]))
    except (KeyError, IndexError, TypeError, msgspec.DecodeError):
        return None


def _index(path: str, source: Parquet, columns: Fields) -> Index:
    """Of a file, from its labels and ids. Raises: UserError."""
    if (own := _columns(path, source)) != columns:
        raise UserError(f"{path} has {own}, but the first file {columns}; expected the same in all files")
    with reading(path, AGAIN), _open(path) as opened:
        file = pq.ParquetFile(opened)
        table = file.read([columns.label, *([columns.id] if columns.id else [])], use_threads=False)
        metadata, schema = file.metadata, file.schema_arrow
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        place = next(at for at in range(metadata.num_columns) if metadata.schema.column(at).path == columns.image)
        sizes = [group.column(place).total_uncompressed_size for group in groups]
    names = _class_names(schema, columns.label)
    labels = _one_array(table[columns.label])
    stored = {}
    if columns.id:
        ids = _one_array(table[columns.id])
        if ids.null_count:
            raise UserError(f"{_row(path, int(np.flatnonzero(ids.is_null())[0]))} has no {columns.id}; expected an id")
        stored["id"] = ids.cast(pa.large_string()).cast(pa.large_binary())
    return Index.of(labels, lambda row: _row(path, row), tuple(stored.values()), stored,
                    row_groups=tuple(group.num_rows for group in groups), group_bytes=max(sizes, default=0),
                    class_names=hashlib.blake2b(repr(names).encode(), digest_size=8).hexdigest())


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    chunk = column.combine_chunks()
    return pa.concat_arrays(chunk.chunks) if isinstance(chunk, pa.ChunkedArray) else chunk


class RowGroups:
    """The images of row groups; those read last are kept, up to `CACHE_BYTES` in each process. Threads may share it."""

    def __init__(self, shards: Shards, column: str):
        self.shards, self.column = shards, column
        self._kept = collections.OrderedDict[tuple[int, int], pa.Array]()
        self._bytes = 0
        self._lock = threading.Lock()
        self._metadata = functools.lru_cache(64)(self._read_metadata)

    def __call__(self, shard: int, group: int) -> pa.Array:
        """The images, as bytes. Raises: OSError, pa.ArrowException."""
        with self._lock:
            if (shard, group) in self._kept:
                self._kept.move_to_end((shard, group))
                return self._kept[shard, group]
        with _open(self.shards.path(shard)) as file:
            read = pq.ParquetFile(file, metadata=self._metadata(shard)).read_row_group
            images = _one_array(read(group, [self.column], use_threads=False).column(0))
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        with self._lock:
            if (shard, group) not in self._kept:
                self._kept[shard, group] = images
                self._bytes += images.nbytes
            while self._bytes > CACHE_BYTES:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return images

    def _read_metadata(self, shard: int) -> pq.FileMetaData:
        with _open(self.shards.path(shard)) as file:
            return pq.read_metadata(file)

    def __reduce__(self):
        return RowGroups, (self.shards, self.column)


@dataclasses.dataclass(eq=False)
class ParquetDataset(Dataset):
    """The rows of all files, in order."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    index: ShardIndex
    shards: Shards
    columns: Fields
    row_groups: RowGroups

    def __len__(self) -> int:
        return len(self.index)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        shard, row = self.index.locate(index)
        id_ = f"{self.shards.names[shard]}/{row}"
        if self.columns.id:
            id_ = self.index.columns(shard)["id"][row].as_py().decode()
        return id_, self.index.labels(shard, row)

    def column_pieces(self) -> Iterator[Columns]:
        for shard, info in enumerate(self.index.infos):
            rows = pa.array(np.arange(info.rows)).cast(pa.large_string())
            ids = (self.index.columns(shard)["id"] if self.columns.id
                   else joined_ids(self.shards.names[shard], "/", rows))
            yield with_keys(ids, self.index.all_labels(shard))

    def __getitem__(self, index: int) -> Example:
        return self.read_one(index)

    def read(self, indices: Sequence[int]) -> list[Example | BadImageError]:
        """Each row group is read once, however many of its images are asked for."""
        places = [self._place(index) for index in indices]
        examples: list[Example | BadImageError] = [{}] * len(places)
        order = sorted(range(len(places)), key=places.__getitem__)
        for (shard, group), members in itertools.groupby(order, lambda at: places[at][:2]):
            images, problem = None, ""
            try:
                images = self.row_groups(shard, group)
            except (OSError, pa.ArrowException) as error:
                problem = f"{self.shards.path(shard)}: row group {group:,} is damaged ({first_line(error)})"
            for at in members:
                id_, labels = self.labels(indices[at])
                image = None if images is None or places[at][2] >= len(images) else images[places[at][2]].as_py()
                examples[at] = {"id": id_, "image": image, "labels": labels}
                if image is None or len(image) > MAX_FILE_BYTES:
                    examples[at] = BadImageError(id_, problem or (
                        f"its row in {self.shards.path(shard)} has no bytes" if image is None else
                        f"it has {len(image):,} bytes; expected at most {MAX_FILE_BYTES:,}"))
        return examples

    def _place(self, index: int) -> tuple[int, int, int]:
        """(file, row group, row in it)."""
        shard, row = self.index.locate(index)
        ends = np.cumsum(self.index.infos[shard].row_groups)
        group = int(np.searchsorted(ends, row, side="right"))
        return shard, group, row - (int(ends[group - 1]) if group else 0)
