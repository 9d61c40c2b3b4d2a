"""The checksums of a checkpoint: of each of its files, in the file that marks it complete.

Buckets list the CRC-32C and the MD5 of their objects: nothing is downloaded to verify them, and a run that is copied
between a bucket and a disk keeps its checksums. CRC-32C is fast, but equal for all files that end with their own
CRC-32C, as many of TensorStore's do. So small files have an MD5 too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import msgspec
import numpy as np

from big_vision_lite.errors import UserError, first_line, reading
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.system.parse import open_regular, parse_json
from big_vision_lite.system.paths import RemotePath

MARK = "commit_success.txt"
"""The checksums' file, by the name that Orbax gives to its mark of a complete checkpoint in a bucket."""
PART = "crc32c.process_"
"""Prefix of the files in which the processes hand their checksums to the first one, which writes `MARK`."""
BLOCK = 2**20
"""Bytes read at once: they stay in a core's cache, and other Python threads wait for 0.2 ms at most."""


class Checksum(msgspec.Struct, frozen=True, array_like=True):
    """Of one file."""

    size: int
    """Bytes."""
    crc32c: int
    md5: str = ""
    """Hexadecimal; "": not known, as of files on a disk from `BLOCK` bytes on."""

    def matches(self, other: Checksum) -> bool:
        return (self.size, self.crc32c) == (other.size, other.crc32c) and (
            self.md5 == other.md5 or "" in (self.md5, other.md5))


Checksums = dict[str, Checksum]
"""By path below the checkpoint's folder."""


def encode(files: Checksums) -> bytes:
    """JSON in one line, and its own CRC-32C in another."""
    data = msgspec.json.encode(files, order="sorted") + b"\n"
    return data + _seal(data)


def decode(data: bytes, source: object) -> Checksums:
    """What `encode` made. Raises: UserError when a single bit of it has changed."""
    body, seal = data[:-9], data[-9:]
    if seal != _seal(body):
        raise UserError(f"{source} does not hold checksums that match their own: it was cut short or changed, or "
                        "written by a version without them")
    return parse_json(body, Checksums, source)


def _seal(data: bytes) -> bytes:
    return b"%08x\n" % google_crc32c.value(data)


def checksum(path: Path) -> Checksum:
    """Raises: OSError when it cannot be read, or is no regular file."""
    file = GrowingFile(path)
    file.advance()
    return file.so_far()


class GrowingFile:
    """A file that another thread appends to, summed up as it grows."""

    def __init__(self, path: Path):
        self.path, self._buffer = path, np.empty(BLOCK, np.uint8)
        self.ends = [(0, 0)]
        """Size and CRC-32C of the file up to the end of each block so far."""

    def advance(self) -> None:
        """Go on to the present end of the file. Raises: OSError."""
        size, crc = self.ends[-1]
        for block in self._blocks(size):
            size, crc = size + len(block), google_crc32c.extend(crc, block)
            self.ends.append((size, crc))

    def finish(self) -> Checksum:
        """The checksum of the complete file. Raises: OSError."""
        self.advance()
        if self.path.stat().st_size != self.ends[-1][0] or not self._is_unchanged():
            return checksum(self.path)  # its writer does not just append
        return self.so_far()

    def so_far(self) -> Checksum:
        size, crc = self.ends[-1]
        md5 = hashlib.md5(next(self._blocks(0), b""), usedforsecurity=False).hexdigest() if size < BLOCK else ""
        return Checksum(size, crc, md5)

    def _is_unchanged(self) -> bool:
        """Whether one of the blocks, chosen at random, still is what was read."""
        if len(self.ends) == 1:
            return True
        index = 1 + secrets.randbelow(len(self.ends) - 1)
        (start, before), (end, after) = self.ends[index - 1:index + 1]
        return google_crc32c.extend(before, next(self._blocks(start), b"")[:end - start]) == after

    def _blocks(self, start: int) -> Iterator[np.ndarray]:
        """The bytes from ``start`` on; each block takes the place of the one before."""
        with open(open_regular(self.path), "rb", buffering=0) as file:  # not mapped: a bad sector would end the process
            file.seek(start)
            while count := file.readinto(self._buffer):
                yield self._buffer[:count]


class GrowingFolder:
    """Files that this process writes below a folder, most of their bytes summed up by the time they are complete."""

    def __init__(self, folder: Path):
        self.folder, self._files = folder, dict[Path, GrowingFile]()

    def advance(self) -> None:
        """Read what was appended to the data of arrays: files that TensorStore writes once, from start to end."""
        with contextlib.suppress(OSError):  # not there yet; any other, the writer and `finish` have too
            for entry in os.scandir(self.folder / "d"):
                if not entry.name.endswith("__lock"):  # TensorStore's temporary files
                    file = self._files.setdefault(Path(entry.path), GrowingFile(Path(entry.path)))
                    if entry.stat().st_size > file.ends[-1][0]:
                        file.advance()

    def finish(self) -> Checksums:
        """The checksums of all files, by path from the parent of the folder. Raises: OSError, also when one is gone."""
        return {path.relative_to(self.folder.parent).as_posix():
                self._files[path].finish() if path in self._files else checksum(path)
                for path in {*_files(self.folder), *self._files}}


def seal(folder: Path) -> None:
    """Write the checksums of all files of a checkpoint into `MARK`, its last file. Raises: OSError."""
    if isinstance(folder, RemotePath):
        files = _in_bucket(folder)
    else:
        files = dict[str, Checksum]()
        for part in folder.glob(f"*/{PART}*"):
            files |= {f"{part.parent.name}/{name}": known for name, known in decode(part.read_bytes(), part).items()}
            part.unlink()
        names = {path: path.relative_to(folder).as_posix() for path in _files(folder)}
        files |= {name: checksum(path) for path, name in names.items() if name not in files}
    (folder / MARK).write_bytes(encode(files))


def damage(folder: Path, share: slice = slice(None)) -> str:
    """The first file of a checkpoint that is not as it was written, and what is wrong with it; "" when there is none.

    Args:
      share: of the files, for one of several processes.

    Raises:
      UserError: they cannot be read, for a reason that says nothing about them, such as a disk that is away.
    """
    def difference(name: str) -> str:
        saved = files[name]
        try:
            found = checksum(folder / name) if listed is None else listed.get(name)
        except OSError as error:
            return _reason(error)
        if found is None:
            return "is missing"
        if found.size != saved.size:
            return f"has {found.size:,} bytes, and was saved with {saved.size:,}"
        return "" if found.matches(saved) else "has other contents than were saved"

    with reading(f"checkpoint {folder}", "see that its disk or bucket is there", (OSError, ValueError)):
        try:
            files = decode(_content(folder / MARK), MARK)
        except OSError as error:
            return f"{MARK}, with its checksums, {_reason(error)}"
        except UserError as error:
            return str(error)
        listed = _in_bucket(folder) if isinstance(folder, RemotePath) else None
        names = sorted(files, key=lambda name: -files[name].size)[share]
        with ThreadPoolExecutor(usable_cores()) as pool:
            differences = zip(names, pool.map(difference, names), strict=True)
            return next((f"{name} {text}" for name, text in differences if text), "")


def _reason(error: OSError) -> str:
    """What is wrong with a file. Raises: the error itself when it may not be the file's fault."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "is missing"
    if error.errno in (errno.EIO, errno.EINVAL):  # a bad sector; a pipe, a folder or a device
        return f"cannot be read: {first_line(error)}"
    raise error


def _content(path: Path) -> bytes:
    if isinstance(path, RemotePath):
        return path.read_bytes()
    with open(open_regular(path), "rb") as file:
        return file.read()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _in_bucket(folder: RemotePath) -> Checksums:
    return {name: Checksum(*known) for name, known in folder.checksums().items()}
