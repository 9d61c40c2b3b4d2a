"""Ids, keys and labels of a whole dataset as columns, in an Arrow file that is memory-mapped when it is read.

The file holds one record batch, so that any row is found in constant time, and ends in its CRC-32C. It is written
through files that are appended to: neither writing nor reading takes memory that grows with the number of rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa

from big_vision_lite.data.ragged import Ragged

CHECKSUM_BYTES = 4
_PIECE = 1 << 22


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
    """The file that they are mapped from."""

    def __len__(self) -> int:
        return len(self.keys)

    def id(self, index: int) -> str:
        return self.ids[index].as_py().decode(errors="surrogateescape")

    def slice(self, start: int, stop: int) -> Columns:
        """Rows ``start`` to ``stop - 1``, without copying ids or labels."""
        before = self.labels.ends[start - 1] if start else 0
        ends = self.labels.ends[start:stop]
        labels = Ragged(ends - before, self.labels.values[before : ends[-1] if len(ends) else before])
        return Columns(labels, self.keys[start:stop], self.ids[start:stop])

    def __reduce__(self):
        if self.path is not None and self.path.is_file():
            return mapped_columns, (self.path,)
        return Columns, (self.labels, self.keys, self.ids, self.metadata)


def id_keys(ids: pa.LargeBinaryArray) -> np.ndarray:
    """uint64 ``[n]``: `ragged.id_key` of each id."""
    hash_of = hashlib.blake2b  # NumPy on whole columns takes longer than this: 0.45 against 0.37 us per id
    keys = [b"".join([hash_of(id_, digest_size=8).digest() for id_ in piece.to_pylist()]) for piece in pieces(ids)]
    return np.frombuffer(b"".join(keys), "<u8").astype(np.uint64, copy=False)


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
        id_ends, id_bytes, keys, label_ends, labels = (_map(self._folder / name) for name in self._files)
        rows = keys.size // 8
        ids = pa.LargeBinaryArray.from_buffers(pa.large_binary(), rows, [None, id_ends, id_bytes])
        values = pa.Array.from_buffers(pa.int32(), labels.size // 4, [None, labels])
        ends = pa.Array.from_buffers(pa.int64(), rows + 1, [None, label_ends])
        batch = pa.RecordBatch.from_pydict(
            {"id": ids, "key": pa.Array.from_buffers(pa.uint64(), rows, [None, keys]),
             "labels": pa.LargeListArray.from_arrays(ends, values)}, metadata=dict(metadata or {}))
        with pa.ipc.new_file(str(self._path), batch.schema) as file:
            file.write(batch)
        append_checksum(self._path)


def append_checksum(path: Path) -> None:
    """End a file in its CRC-32C. Raises: OSError."""
    checksum = google_crc32c.Checksum()
    with open(path, "rb+") as file:
        while piece := file.read(_PIECE):
            checksum.update(piece)
        file.write(checksum.digest())


def is_sound(path: Path) -> bool:
    """Whether a file is there and ends in its CRC-32C."""
    if not path.is_file() or (size := path.stat().st_size) <= CHECKSUM_BYTES:
        return False
    checksum = google_crc32c.Checksum()
    with open(path, "rb") as file:  # read, not mapped: these pages do not count as memory of this process
        remaining = size - CHECKSUM_BYTES
        while remaining and (piece := file.read(min(remaining, _PIECE))):
            checksum.update(piece)
            remaining -= len(piece)
        return file.read() == checksum.digest()


def mapped_batch(path: Path) -> pa.RecordBatch:
    """The record batch of a file that is known to be sound, memory-mapped."""
    stored = pa.memory_map(str(path)).read_buffer()
    return pa.ipc.open_file(stored.slice(0, len(stored) - CHECKSUM_BYTES)).get_batch(0)


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
    batch = mapped_batch(path)
    labels = batch["labels"]
    metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
    return Columns(Ragged(labels.offsets.to_numpy()[1:], labels.values.to_numpy()), batch["key"].to_numpy(),
                   batch["id"], metadata, path)


def _map(path: Path) -> pa.Buffer:
    """A whole file; an empty one cannot be mapped."""
    return pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")
