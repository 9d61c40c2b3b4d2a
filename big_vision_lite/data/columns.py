"""Ids, keys and labels of a whole dataset as columns, in an Arrow file that is memory-mapped when it is read.

The file holds one record batch, so that any row is found in constant time, and ends in its CRC-32C, or those of its
pieces where it is large. It is written through files that are appended to: neither writing nor passes over all rows
take memory that grows with their number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from big_vision_lite.data.ragged import Ragged

CHECKSUM_BYTES = 4
PIECE = 1 << 22
"""Bytes of a large file that have a checksum of their own."""
SAMPLE = 64
"""A file of more pieces than this is large. So many of them are verified when it is opened, whatever its size."""
MAX_RESIDENT = 1 << 28
"""Bytes of a mapped column that a pass over many rows keeps in memory at a time."""
PIECE_ROWS = 1 << 18
"""Rows that sources make at a time."""
FEW = 1 << 14
"""Rows that are read without regard to that."""


@dataclasses.dataclass(eq=False)
class Columns:
    """Some 30 bytes per example and the ids themselves. Those of a file pickle as its name."""

    labels: Ragged
    keys: np.ndarray
    """uint64 ``[n]``: `ragged.id_key` of each id."""
    ids: pa.LargeBinaryArray
    """UTF-8, with file names' undecodable bytes as they are."""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: Path | None = None
    """The file that they are mapped from; ``pages`` are its pages in memory."""
    pages: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def id(self, index: int) -> str:
        return self.ids[index].as_py().decode(errors="surrogateescape")

    def keys_at(self, indices: np.ndarray) -> np.ndarray:
        """uint64 ``[k]``: the keys of rows int64 ``[k]``, in any order."""
        return self._gather(indices, self.keys.nbytes, lambda rows: self.keys[rows],
                            lambda parts, order: np.concatenate(parts)[order])

    def labels_at(self, indices: np.ndarray) -> Ragged:
        """The labels of rows int64 ``[k]``, in any order."""
        return self._gather(indices, self.labels.ends.nbytes + self.labels.values.nbytes, self.labels.take,
                            lambda parts, order: Ragged.concatenate(parts).take(order))

    def ids_at(self, indices: np.ndarray) -> pa.LargeBinaryArray:
        """The ids of rows int64 ``[k]``, in any order."""
        return self._gather(indices, self.ids.nbytes, lambda rows: self.ids.take(pa.array(rows)),
                            lambda parts, order: pa.concat_arrays(parts).take(pa.array(order)))

    def _gather(self, indices: np.ndarray, size: int, take: Callable[[np.ndarray], Any],
                join: Callable[[list, np.ndarray], Any]) -> Any:
        """``take(indices)`` of a column of ``size`` bytes. Many rows of a large mapped one are taken in ascending
        order, and the pages that they are on given back, so that a pass over the file does not hold all of it."""
        if self.pages is None or len(indices) <= FEW:
            return take(indices)
        first, last = int(indices.min()), int(indices.max())
        parts = -(-size * (last - first + 1) // (len(self) * MAX_RESIDENT))
        if parts == 1:
            taken = take(indices)
            self.release()
            return taken
        order = np.argsort(indices, kind="stable")
        taken = []
        for rows in np.array_split(indices[order], parts):
            taken.append(take(rows))
            self.release()
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return join(taken, back)

    def release(self) -> None:
        """Give back the pages of a mapped file. Those that are needed again come from the system's cache."""
        _release([self.pages] if self.pages is not None else [])

    def slice(self, start: int, stop: int) -> Columns:
        """Rows ``start`` to ``stop - 1``, without copying ids or labels."""
        before = self.labels.ends[start - 1] if start else 0
        ends = self.labels.ends[start:stop]
        labels = Ragged(ends - before, self.labels.values[before : ends[-1] if len(ends) else before])
        return Columns(labels, self.keys[start:stop], self.ids[start:stop], pages=self.pages)

    def pieces(self) -> Iterator[Columns]:
        """All rows, `PIECE_ROWS` at a time."""
        for start in range(0, len(self), PIECE_ROWS):
            yield self.slice(start, min(start + PIECE_ROWS, len(self)))
            self.release()

    def __reduce__(self):
        if self.path is not None and self.path.is_file():
            return mapped_columns, (self.path,)
        return Columns, (self.labels, self.keys, self.ids, self.metadata)


def id_keys(ids: pa.LargeBinaryArray) -> np.ndarray:
    """uint64 ``[n]``: `ragged.id_key` of each id."""
    hash_of = hashlib.blake2b  # NumPy on whole columns takes longer than this: 0.45 against 0.37 us per id
    keys = [b"".join([hash_of(id_, digest_size=8).digest() for id_ in piece.to_pylist()]) for piece in pieces(ids)]
    return np.frombuffer(b"".join(keys), "<u8").astype(np.uint64, copy=False)


def with_keys(ids: pa.LargeBinaryArray, labels: Ragged) -> Columns:
    """Columns of ids and labels."""
    return Columns(labels, id_keys(ids), ids)


def joined_ids(*parts: str | pa.Array) -> pa.LargeBinaryArray:
    """Ids put together of texts that all share and arrays of their parts."""
    kind = pa.large_binary()
    whole = [pa.scalar(os.fsencode(part), kind) if isinstance(part, str) else part.cast(kind) for part in parts]
    return pc.binary_join_element_wise(*whole, pa.scalar(b"", kind))


def has_repeats(keys: np.ndarray) -> bool:
    """Whether a key occurs twice. It takes the memory of one more copy."""
    ordered = np.sort(keys)
    return bool((ordered[1:] == ordered[:-1]).any())


def pieces(array: pa.Array, length: int = 1 << 16) -> Iterator[pa.Array]:
    """Consecutive slices of at most ``length`` entries."""
    for start in range(0, len(array), length):
        yield array.slice(start, length)


def offsets_and_bytes(texts: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each text starts and the last ends, int64 ``[n + 1]``, in the bytes of all, uint8; without copying."""
    _, offsets, joined = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    start, stop = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(joined, np.uint8)[start:stop] if joined else np.zeros(0, np.uint8)
    return (offsets - start if start else offsets), data


class ColumnsWriter:
    """A context that appends rows to columns, in a temporary folder, and makes them one file."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> ColumnsWriter:
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(
                tempfile.TemporaryDirectory(dir=self._path.parent, prefix="incomplete.")))
            self._files = {name: stack.enter_context(open(self._folder / name, "wb"))
                           for name in ("id_ends", "id_bytes", "keys", "label_ends", "labels")}
            for name in ("id_ends", "label_ends"):
                self._files[name].write(bytes(8))  # the first 0, so that they are Arrow's offsets
            self._id_bytes = self._labels = 0
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def append(self, ids: pa.LargeBinaryArray, keys: np.ndarray, labels: Ragged) -> None:
        """Raises: OSError."""
        offsets, joined = offsets_and_bytes(ids)
        for name, values in (("id_ends", offsets[1:] + self._id_bytes), ("id_bytes", joined), ("keys", keys),
                             ("label_ends", labels.ends + self._labels), ("labels", labels.values)):
            self._files[name].write(np.ascontiguousarray(values))
        self._id_bytes += len(joined)
        self._labels += len(labels.values)

    def finish(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the file. Raises: OSError."""
        for file in self._files.values():
            file.flush()
        paths = [self._folder / name for name in self._files]
        pages = [_map(path) for path in paths if path.stat().st_size]  # an empty file cannot be mapped
        mapped = iter(pages)
        id_ends, id_bytes, keys, label_ends, labels = (
            pa.py_buffer(next(mapped) if path.stat().st_size else b"") for path in paths)
        rows = keys.size // 8
        ids = pa.LargeBinaryArray.from_buffers(pa.large_binary(), rows, [None, id_ends, id_bytes])
        values = pa.Array.from_buffers(pa.int32(), labels.size // 4, [None, labels])
        ends = pa.Array.from_buffers(pa.int64(), rows + 1, [None, label_ends])
        batch = pa.RecordBatch.from_pydict(
            {"id": ids, "key": pa.Array.from_buffers(pa.uint64(), rows, [None, keys]),
             "labels": pa.LargeListArray.from_arrays(ends, values)}, metadata=dict(metadata or {}))
        with open(self._path, "wb") as raw, pa.ipc.new_file(_FromMapped(raw, pages), batch.schema) as file:
            file.write(batch)
        append_checksum(self._path)


def append_checksum(path: Path) -> None:
    """End a file in the CRC-32C of all of it, or where it is large in those of all pieces and that of these.

    Raises:
      OSError: it cannot be read or written.
    """
    with open(path, "rb+") as file:
        checksums = [_checksum(piece) for piece in iter(lambda: file.read(PIECE), b"")]
        if len(checksums) > SAMPLE:
            file.write(b"".join(checksums) + _checksum(b"".join(checksums)))
        else:
            file.seek(0)
            file.write(_whole_checksum(file))


def is_sound(path: Path, whole: bool = False) -> bool:
    """Whether a file is there and has its checksums.

    Args:
      whole: verify all pieces of a large file, and not only some of them, evenly spaced. Opening it with a few reads
        finds files that are cut, of other data, or damaged at large.
    """
    if not path.is_file() or (size := path.stat().st_size) <= CHECKSUM_BYTES:
        return False
    with open(path, "rb") as file:  # read, not mapped: these pages do not count as memory of this process
        content = content_size(size)
        count = -(-content // PIECE)
        if count <= SAMPLE:
            return _whole_checksum(file, content) == file.read()
        file.seek(content)
        checksums, own = file.read(count * CHECKSUM_BYTES), file.read()
        if own != _checksum(checksums):
            return False
        for number in range(count) if whole else np.linspace(0, count - 1, SAMPLE).astype(int).tolist():
            file.seek(number * PIECE)
            at = number * CHECKSUM_BYTES
            if _checksum(file.read(min(PIECE, content - number * PIECE))) != checksums[at : at + CHECKSUM_BYTES]:
                return False
    return True


def content_size(size: int) -> int:
    """Bytes of a file of ``size`` bytes before its checksums."""
    count = -(-(size - CHECKSUM_BYTES) // (PIECE + CHECKSUM_BYTES))  # each piece and its checksum, and one for all
    return size - CHECKSUM_BYTES * (count + 1 if count > SAMPLE else 1)


def _checksum(data: bytes) -> bytes:
    return google_crc32c.Checksum(data).digest()


def _whole_checksum(file: BinaryIO, size: int | None = None) -> bytes:
    """Of the next ``size`` bytes of a file, or of all."""
    checksum = google_crc32c.Checksum()
    while piece := file.read(PIECE if size is None else min(PIECE, size)):
        checksum.update(piece)
        size = None if size is None else size - len(piece)
    return checksum.digest()


def mapped_batch(path: Path) -> pa.RecordBatch:
    """The record batch of a file that is known to be sound, memory-mapped."""
    return _mapped_batch(path)[0]


def _mapped_batch(path: Path) -> tuple[pa.RecordBatch, mmap.mmap]:
    """It and the pages of the file."""
    pages = _map(path)
    return pa.ipc.open_file(pa.py_buffer(pages).slice(0, content_size(len(pages)))).get_batch(0), pages


def write_columns(columns: Iterable[Columns], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write columns, given piece by piece, to a file. Raises: OSError."""
    with ColumnsWriter(path) as writer:
        for piece in columns:
            writer.append(piece.ids, piece.keys, piece.labels)
        writer.finish(metadata)


def read_columns(path: Path) -> Columns | None:
    """The columns of a file, memory-mapped; None if it is missing or damaged."""
    return mapped_columns(path) if is_sound(path) else None


def mapped_columns(path: Path) -> Columns:
    """The columns of a file that is known to be sound."""
    batch, pages = _mapped_batch(path)
    labels = batch["labels"]
    metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
    return Columns(Ragged(labels.offsets.to_numpy()[1:], labels.values.to_numpy()), batch["key"].to_numpy(),
                   batch["id"], metadata, path, pages)


class _FromMapped:
    """A file that Arrow writes mapped columns to. Their pages are given back every `MAX_RESIDENT` bytes."""

    closed = False

    def __init__(self, file: BinaryIO, pages: Sequence[mmap.mmap]):
        self._file, self._pages = file, pages

    def write(self, data: pa.Buffer | bytes) -> int:
        for start in range(0, len(data), MAX_RESIDENT):
            self._file.write(memoryview(data)[start : start + MAX_RESIDENT])
            _release(self._pages)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _map(path: Path) -> mmap.mmap:
    """The pages of a whole file that is not empty."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _release(pages: Sequence[mmap.mmap]) -> None:
    for mapped in pages if hasattr(mmap, "MADV_DONTNEED") else ():
        mapped.madvise(mmap.MADV_DONTNEED)
