"""The files of a prepared TFDS split as one array of records, read at random: ArrayRecord and TFRecord.

TFRecord files (Abadi et al., 2015) have no index. One is made by hopping from length to length, and kept: then a record
is one read at a known place, and TensorFlow is not needed. Checksums of lengths and data are verified.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from big_vision_lite.data.cache import cache_dir, kept
from big_vision_lite.data.cores import usable_cores
from big_vision_lite.errors import UserError

FORMAT = 1
REMOTE_SECONDS = 60
"""How long a remote file may take to show its first record."""


class Part(NamedTuple):
    """Records ``skip`` to ``skip + take`` of a file. The names are those that ArrayRecord's data source looks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@runtime_checkable
class Shards(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


def check_parts(parts: Sequence[Part], file_format: str) -> None:
    """Look into every file: is it whole, and does it hold as many records as the data set's description says?

    Raises:
      UserError: names the first that is missing, cut or of another length, or that cannot be read where it is.
    """
    if "://" in parts[0].filename:
        _check_remote(parts[0])
    count = {"array_record": _array_records, "tfrecord": lambda path: len(_offsets(path)) - 1}[file_format]
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
        for part, found in zip(parts, pool.map(count, [part.filename for part in parts]), strict=True):
            if found != part.examples_in_shard:
                raise UserError(f"{part.filename} holds {found:,} records, and the data set's description says "
                                f"{part.examples_in_shard:,}; it is cut or of another version: prepare it again")


def _array_records(path: str) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(path)
    if not reader.ok():  # and to close it would raise
        raise UserError(f"{path} is not a whole ArrayRecord file, or missing; copy or prepare it again")
    count = reader.num_records()
    reader.close()
    return count


def _check_remote(part: Part) -> None:
    """The installed reader may not know the file system, or wait for ever for leave to use it."""
    found: list[bool] = []

    def read() -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(part.filename)
        found.append(bool(reader.ok() and reader.num_records() and reader.read([0])))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(REMOTE_SECONDS)
    if not any(found):
        place = part.filename.rpartition("/")[0]
        raise UserError(f"the first record of {part.filename} cannot be read from here; mount the bucket (gcsfuse) or "
                        f"copy it (gcloud storage cp -r {place} DIR), and name that folder as data_dir")


def open_parts(parts: Sequence[Part], file_format: str) -> Shards:
    """Random access to checked parts, safe for threads."""
    if file_format == "tfrecord":
        return TfRecords(parts)
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(list(parts))


class TfRecords:
    """Records of TFRecord files. Raises: UserError when one is damaged."""

    def __init__(self, parts: Sequence[Part]):
        self._parts = list(parts)
        self._ends = np.cumsum([part.take for part in parts])
        self._offsets = [_offsets(part.filename) for part in parts]
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        file = int(np.searchsorted(self._ends, index, side="right"))
        part, offsets = self._parts[file], self._offsets[file]
        record = part.skip + index - (int(self._ends[file]) - part.take)
        start, stop = int(offsets[record]), int(offsets[record + 1])
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(part.filename, os.O_RDONLY)
        raw = os.pread(self._descriptors[file], stop - start, start)
        data = raw[12:-4]
        if len(raw) < stop - start or _masked(data) != struct.unpack("<I", raw[-4:])[0]:
            raise UserError(f"{part.filename}: record {record} is damaged (wrong checksum); copy or prepare it again")
        return data

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def _offsets(path: str) -> np.ndarray:
    """int64 ``[records + 1]``: where each record starts, and the end of the file. Made once, then kept."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; prepare the data set again") from None
    identity = repr((os.path.abspath(path), stat.st_size, stat.st_mtime_ns))
    name = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    place = cache_dir() / "tfrecord" / f"{name}-{FORMAT}.npy"
    if place.is_file():
        return np.load(place, allow_pickle=False)
    offsets = [0]
    with open(path, "rb", buffering=0) as file:
        while offsets[-1] < stat.st_size:
            head = os.pread(file.fileno(), 12, offsets[-1])
            if len(head) < 12 or _masked(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise UserError(f"{path} is damaged or cut at byte {offsets[-1]:,} of {stat.st_size:,}, or not an "
                                "uncompressed TFRecord file; copy or prepare it again")
            offsets.append(offsets[-1] + 16 + struct.unpack("<Q", head[:8])[0])
    if offsets[-1] != stat.st_size:
        raise UserError(f"{path} is cut: its last record ends at byte {offsets[-1]:,} and the file at "
                        f"{stat.st_size:,}; copy or prepare it again")
    found = np.array(offsets, np.int64)
    with kept(place) as temporary:
        np.save(temporary, found)
    return found


def _masked(data: bytes) -> int:
    """The checksum that TFRecord writes: CRC-32C, rotated and shifted."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
