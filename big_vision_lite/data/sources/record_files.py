"""Random access to the stored records of a prepared TFDS split, in ArrayRecord and TFRecord files.

TFRecord files (Abadi et al., 2015) have no index, so one is built by skipping from length to length, and cached: each
record is then one read, without TensorFlow. Checksums of lengths and data are verified.
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

from big_vision_lite.data.scans import is_indexing
from big_vision_lite.data.sources.files import OpenFiles
from big_vision_lite.errors import UserError, reading
from big_vision_lite.system.cache import cached_array, cached_path
from big_vision_lite.system.cores import usable_cores

FORMAT = 1
AGAIN = "copy or prepare it again"
MANY_FILES = 512
"""Files of a split, of which only so many are opened to check them, so that a start takes no longer for more."""
REMOTE_SECONDS = 60
"""Timeout for reading the first record of a remote file."""


class Part(NamedTuple):
    """Records ``skip`` to ``skip + take`` of a file. The names of the fields are those that ArrayRecord expects."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@runtime_checkable
class Records(Protocol):
    """Stored records by index, over all files of a split."""

    def __getitem__(self, index: int) -> bytes: ...


def check_parts(parts: Sequence[Part], file_format: str) -> None:
    """Checks that files are complete and have as many records as the dataset's metadata says: all, or of more than
    `MANY_FILES` as many, evenly spaced, unless this is `bvl data index`. The others show it when they are read.

    Raises:
      UserError: a file is missing, truncated, of another length, or not readable from this machine.
    """
    if "://" in parts[0].filename:
        _check_remote(parts[0])
    if len(parts) > MANY_FILES and not is_indexing():
        parts = [parts[at] for at in np.linspace(0, len(parts) - 1, MANY_FILES).astype(int).tolist()]
    count_records = _count_array_records if file_format == "array_record" else lambda path: len(_offsets(path)) - 1
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
        for part, count in zip(parts, pool.map(count_records, [part.filename for part in parts]), strict=True):
            if count != part.examples_in_shard:
                raise UserError(f"{part.filename} has {count:,} records, but the dataset's metadata says "
                                f"{part.examples_in_shard:,}; it is truncated or of another version: prepare it again")


def _count_array_records(path: str) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    with reading(path, AGAIN):
        reader = ArrayRecordReader(path)
        if not reader.ok():  # close() would raise, too
            raise UserError(f"{path} is missing or not a complete ArrayRecord file; {AGAIN}")
        count = reader.num_records()
        reader.close()
    return count


def _check_remote(part: Part) -> None:
    """The installed reader may not support the file system, or wait forever for credentials."""
    readable: list[bool] = []

    def read() -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(part.filename)
        readable.append(bool(reader.ok() and reader.num_records() and reader.read([0])))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(REMOTE_SECONDS)
    if not any(readable):
        folder = part.filename.rpartition("/")[0]
        raise UserError(f"the first record of {part.filename} cannot be read from here; mount the bucket (gcsfuse) or "
                        f"copy it (gcloud storage cp -r {folder} DIR), and name that folder as data_dir")


def open_parts(parts: Sequence[Part], file_format: str) -> Records:
    """Random access to checked parts; thread-safe."""
    if file_format == "tfrecord":
        return TfRecords(parts)
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(list(parts))


class TfRecords:
    """Records of TFRecord files. Reading a damaged one raises UserError."""

    def __init__(self, parts: Sequence[Part]):
        self._parts = list(parts)
        self._ends = np.cumsum([part.take for part in parts])
        self._offsets = [_offsets(part.filename) for part in parts]
        self._files = OpenFiles([part.filename for part in parts])

    def __getitem__(self, index: int) -> bytes:
        file = int(np.searchsorted(self._ends, index, side="right"))
        part, offsets = self._parts[file], self._offsets[file]
        record = part.skip + index - (int(self._ends[file]) - part.take)
        start, stop = int(offsets[record]), int(offsets[record + 1])
        raw = self._files.read(file, start, stop - start)
        data = raw[12:-4]
        if len(raw) < stop - start or _masked_crc(data) != struct.unpack("<I", raw[-4:])[0]:
            raise UserError(f"{part.filename}: record {record} is damaged (wrong checksum); {AGAIN}")
        return data


def _offsets(path: str) -> np.ndarray:
    """int64 ``[records + 1]``: where each record starts, and the end of the file. Cached."""
    with reading(path, AGAIN, OSError):
        status = os.stat(path)
    identity = repr((os.path.abspath(path), status.st_size, status.st_mtime_ns))
    name = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    return cached_array(cached_path("tfrecord", f"{name}-{FORMAT}.npy"), lambda: _scan(path, status.st_size))


def _scan(path: str, size: int) -> np.ndarray:
    """`_offsets`, from the lengths before each record."""
    offsets = [0]
    with reading(path, AGAIN, OSError), open(path, "rb", buffering=0) as file:
        while offsets[-1] < size:
            head = os.pread(file.fileno(), 12, offsets[-1])
            if len(head) < 12 or _masked_crc(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise UserError(f"{path} is damaged or truncated at byte {offsets[-1]:,} of {size:,}, or not an "
                                f"uncompressed TFRecord file; {AGAIN}")
            offsets.append(offsets[-1] + 16 + struct.unpack("<Q", head[:8])[0])
    if offsets[-1] != size:
        raise UserError(f"{path} is truncated: its last record ends at byte {offsets[-1]:,}, but the file at {size:,}; "
                        f"{AGAIN}")
    return np.array(offsets, np.int64)


def _masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated and shifted."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
