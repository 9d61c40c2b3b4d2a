"""Shards of a WebDataset: tar files with the files of each example side by side, read in any order by an index."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import Columns, joined_ids, with_keys
from big_vision_lite.data.scans import MAX_TAR_BYTES, check_scan
from big_vision_lite.data.source import Dataset, Example, Source
from big_vision_lite.data.sources.files import EXTENSIONS, MAX_FILE_BYTES, Fingerprint, OpenFiles
from big_vision_lite.data.sources.remote import OpenFile, open_file, pread, size_of, url_of
from big_vision_lite.data.sources.shard_index import (
    FORMAT,
    MAX_CLASSES,
    Index,
    ShardIndex,
    open_index,
    read_index,
    write_index,
)
from big_vision_lite.data.sources.shards import Shards, find_shards, first_shard
from big_vision_lite.data.sources.tar_files import TAR_ERRORS, class_name, example_key, unreadable, visible_members
from big_vision_lite.errors import BadImageError, UserError, first_line, nearest, reading
from big_vision_lite.system.cache import cached_path
from big_vision_lite.system.parse import parse_json

BESIDE = ".index"
"""What is added to a tar file's name for an index beside it."""
MAX_LABEL_BYTES = 1 << 20
"""Of a .cls or .json file."""
MAX_OPEN_FILES = 512
"""With more shards than this, they are opened for each read."""
PROBE_BYTES = 4096
"""Of an image's header and start that tell one shard from another of the same size."""


@dataclasses.dataclass(frozen=True)
class WebDataset(Source):
    """Images in the uncompressed tar files of a WebDataset: beside each image ``KEY.jpg`` there is ``KEY.cls`` with its
    class, or ``KEY.json`` with a field that has one or a list of them. Nothing is unpacked.

    Labels are numbers of classes, whose names are ``classes`` or else 0, 1, ... up to the largest label of these files;
    or names, and then the classes are these, sorted. A split may lack some of them: give ``classes`` then. In json,
    null and -1 are hidden labels. The id of an example is ``SHARD.tar/MEMBER``.

    Each shard is scanned once. Its index, with the offset, size, name and labels of each image, is kept in the cache
    until the shard's path, size or time changes, or beside the shard, where all machines find it.
    """

    path: str = ""
    """A file, a pattern such as ``shards/train-*.tar``, or a folder whose files, also those in folders named ``data``
    or like a split, are named ``SPLIT-*``."""
    split: str | None = None
    """train, validation or test; None for all files, if they are of one split or given by a pattern."""
    label_key: str | None = None
    """The field of ``KEY.json`` that has the labels; None for ``KEY.cls``."""
    classes: tuple[str, ...] | str | None = None
    """Names in order, or a text file with one name per line."""
    multi_label: bool | None = None
    """Whether an image may have any number of labels; None: if any image has none or several."""
    index_beside: bool = False
    """Write the index of each shard beside it, as ``SHARD.tar.index``. One that is there is used in any case, if its
    shard has the size, the first and the last image that it had when it was indexed."""
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`: sizes and times are those of the shards."""

    precedence: ClassVar[int] = 1

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        """By the first example of the first shard."""
        file = first_shard(path, ".tar")
        with contextlib.suppress(UserError):  # `TarImages` says what is wrong
            found = _first_example(file) if file else {}
            if not EXTENSIONS.isdisjoint(found):
                if "cls" in found:
                    return {"path": str(path)}
                fields = parse_json(found.get("json", b"{}"), dict[str, Any], file)
                key = next((name for name in ("label", "labels") if name in fields), None)
                return {"path": str(path), "label_key": key} if key else None
        return None

    def open(self) -> WebDatasetDataset:
        """Scans the shards that have no index yet; no image is read.

        Raises:
          UserError: there are no shards, or one is compressed, damaged or truncated, has an image without labels or
            twice, or a label that is none of the classes; or an index beside a shard is damaged, or of another file.
        """
        shards = self._shards()
        index = open_index(len(shards.names), lambda shard: self._stored(shards, shard),
                           lambda shard: self._scanned(shards, shard),
                           cached_path("web_dataset", f"{shards.key_of_all(self.label_key)}-{FORMAT}.json"),
                           self.index_beside)
        classes = index.choose_classes(self.classes, "WebDataset", shards.path,
                                       lambda shard, row: f"{shards.path(shard)}: {_name(index, shard, row)!r}")
        for shard, info in enumerate(index.infos):
            if self.multi_label is False and info.labels_per_image != (1, 1):
                row = int(np.flatnonzero(np.diff(index.columns(shard)["labels"].offsets) != 1)[0])
                raise UserError(f"{shards.path(shard)}: {_name(index, shard, row)!r} has "
                                f"{len(index.labels(shard, row))} labels; expected one, because multi_label is False")
        multi_label = any(info.labels_per_image != (1, 1) for info in index.infos) or bool(self.multi_label)
        identity = classes, multi_label, [info.digest for info in index.infos]
        files = OpenFiles([shards.path(shard) for shard in range(len(shards.names))], MAX_OPEN_FILES)
        return WebDatasetDataset(classes, multi_label, shards.fingerprint("web", identity, self.fingerprint), index,
                                 shards.names, files)

    def count_files(self) -> int:
        return len(self._shards().names)

    def index_files(self, numbers: Sequence[int]) -> None:
        shards = self._shards()
        for shard in numbers:
            path, index = self._stored(shards, shard)
            if index is None:
                write_index(self._scanned(shards, shard), path, must_write=True)

    def _shards(self) -> Shards:
        return find_shards(self.path, ".tar", self.split, "WebDataset")

    def _scanned(self, shards: Shards, shard: int) -> Index:
        """Raises: UserError."""
        check_scan(f"WebDataset({self.path!r})", int(shards.stats[:, 0].sum()), MAX_TAR_BYTES, "bytes of tar files")
        return _scan(shards.path(shard), self.label_key)

    def _stored(self, shards: Shards, shard: int) -> tuple[Path, Index | None]:
        """Where the index of a shard belongs, and the index if it is there. Raises: UserError."""
        file = shards.path(shard)
        beside = Path(file + BESIDE)
        if url_of(file) and self.index_beside:
            raise UserError(f"WebDataset.index_beside with {file}, but indices are memory-mapped; expected a local or "
                            "mounted folder: index with `bvl data index --out FOLDER` instead")
        if url_of(file) or not beside.exists():
            cached = cached_path("web_dataset", f"{shards.key(shard, self.label_key)}-{FORMAT}.arrow")
            return (beside, None) if self.index_beside else (cached, read_index(cached))
        index = read_index(beside)
        again = "remove it, and it is made again"
        if index is None:
            raise UserError(f"{beside} is damaged or of another version; {again}")
        if index.info.labels_from != (self.label_key or "cls"):
            raise UserError(f"{beside} has labels from {index.info.labels_from!r}, but WebDataset.label_key is "
                            f"{self.label_key!r}; expected the same: {again}")
        size = int(shards.stats[shard, 0])
        if index.info.size != size:
            raise UserError(f"{beside} is of a tar file of {index.info.size:,} bytes, but {file} has {size:,}; {again}")
        with reading(file), open_file(file) as raw:
            if _probe(raw, index.columns) != index.info.probe:
                raise UserError(f"{beside} is of another tar file than {file}; {again}")
        return beside, index


def _name(index: ShardIndex, shard: int, row: int) -> str:
    return os.fsdecode(index.columns(shard)["member"][row].as_py())


def _members(raw: Any, file: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The regular files in a shard, and where they start. Raises: UserError."""
    try:
        with tarfile.open(fileobj=raw, mode="r:") as opened:
            size = size_of(raw)
            for member, start in visible_members(opened, file, 0, size, size):
                if member.isreg() and not member.issparse():
                    yield member, start
    except TAR_ERRORS as error:
        raise UserError(unreadable(file, error)) from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {first_line(error)}") from None


def _first_example(file: str) -> dict[str, bytes]:
    """What its files begin with, by their extensions. Raises: UserError."""
    found: dict[str, bytes] = {}
    first = None
    with open_file(file) as raw:
        for member, start in _members(raw, file):
            key, extension = example_key(member.name)
            first = first or key
            if key != first:
                break
            found[extension] = pread(raw, min(member.size, MAX_LABEL_BYTES), start)
    return found


def _scan(file: str, label_key: str | None) -> Index:
    """The index of a shard. Raises: UserError."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int | str | list | None] = {}
    kind = "cls" if label_key is None else "json"
    with open_file(file) as raw:
        for member, start in _members(raw, file):
            key, extension = example_key(member.name)
            if extension in EXTENSIONS:
                if key in images:
                    raise UserError(f"{file} has both {images[key][0]!r} and {member.name!r} at byte {start:,}; "
                                    "expected one image per key: pack the file again")
                images[key] = member.name.removeprefix("./"), start, member.size
            elif extension == kind:
                content = pread(raw, min(member.size, MAX_LABEL_BYTES), start)
                labels[key] = _labels_in(content, label_key, file, member.name)
        if not images:
            raise UserError(f"{file} has no images; expected KEY.jpg and KEY.{kind} of each example")
        missing = next((key for key in images if key not in labels), None)
        if missing is not None:
            raise UserError(f"{file}: {images[missing][0]!r} has no {missing}.{kind} with its labels; expected one for "
                            "each image, or another WebDataset.label_key")
        rows = [labels[key] for key in images]
        names, starts, sizes = zip(*images.values(), strict=True)
        members = pa.array(map(os.fsencode, names), pa.large_binary())
        columns = {"member": members, "offset": pa.array(starts, pa.int64()), "size": pa.array(sizes, pa.int64())}
        index = Index.of(_label_array(rows, file, names), lambda row: f"{file}: {names[row]!r}",
                         (members, columns["size"]), columns, size=size_of(raw),
                         labels_from=label_key or "cls")
        index.info.probe = _probe(raw, index.columns)
    return index


def _labels_in(content: bytes, field: str | None, file: str, member: str) -> Any:
    """The class in a .cls file, or the labels in a field of a .json file. Raises: UserError."""
    if field is None:
        name = class_name(content, file, member)
        return int(name) if name.isdecimal() and name.isascii() else name
    values = parse_json(content, dict[str, Any], f"{file}: {member!r}", "expected a json object")
    if field not in values:
        raise UserError(f"{file}: {member!r} has no {field!r}{nearest(field, values)}; expected it with the labels")
    found = values[field]
    for label in found if isinstance(found, list) else [found]:
        if type(label) not in (int, str, type(None)) or not -1 <= (label if type(label) is int else 0) < MAX_CLASSES:
            raise UserError(f"{file}: {member!r} has {label!r:.50} as {field!r}; expected a number from 0 to "
                            f"{MAX_CLASSES - 1:,} or a text, or a list of them")
    return found


def _label_array(rows: list, file: str, names: tuple[str, ...]) -> pa.Array:
    """Lists of numbers or of texts. Raises: UserError when there are both."""
    lists = [[label for label in (row if isinstance(row, list) else [row]) if label is not None] for row in rows]
    first_of = {type(label): at for at in range(len(lists) - 1, -1, -1) for label in lists[at]}
    if len(first_of) > 1:
        number, name = names[first_of[int]], names[first_of[str]]
        raise UserError(f"{file}: the label of {number!r} is a number, but that of {name!r} a name; expected one or "
                        "the other")
    return pa.array(lists, pa.list_(pa.large_string() if str in first_of else pa.int64()))


def _probe(raw: OpenFile, columns: pa.RecordBatch) -> int:
    """A checksum of the headers of the first and last image, and of how these start."""
    starts = (columns["offset"][at].as_py() - tarfile.BLOCKSIZE for at in (0, len(columns) - 1))
    return google_crc32c.value(b"".join(pread(raw, PROBE_BYTES, max(0, start)) for start in starts))


@dataclasses.dataclass(eq=False)
class WebDatasetDataset(Dataset):
    """The images of all shards, in order. Threads and processes may share it, because reads give their own offset."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    index: ShardIndex
    names: tuple[str, ...]
    files: OpenFiles

    def __len__(self) -> int:
        return len(self.index)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        shard, row = self.index.locate(index)
        return f"{self.names[shard]}/{_name(self.index, shard, row)}", self.index.labels(shard, row)

    def column_pieces(self) -> Iterator[Columns]:
        for shard, name in enumerate(self.names):
            ids = joined_ids(name, "/", self.index.columns(shard)["member"])
            yield with_keys(ids, self.index.all_labels(shard))

    def __getitem__(self, index: int) -> Example:
        id_, labels = self.labels(index)
        shard, row = self.index.locate(index)
        columns = self.index.columns(shard)
        offset, size = columns["offset"][row].as_py(), columns["size"][row].as_py()
        if size > MAX_FILE_BYTES:
            raise BadImageError(id_, f"it has {size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        try:
            image = self.files.read(shard, offset, size)
        except OSError as error:
            raise BadImageError(id_, first_line(error)) from error
        if len(image) < size:
            raise BadImageError(id_, f"{self.files.paths[shard]} is shorter than when it was indexed")
        return {"id": id_, "image": image, "labels": labels}
