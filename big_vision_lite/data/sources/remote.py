"""Files in buckets, and local ones, read at any place: ranges of bytes, some read ahead, and failures tried again.

Any store that fsspec knows, by its URL. Random reads are one request for their bytes. Where reads go on shortly after
the last one, as when a file is scanned or evaluated in order, `READ_AHEAD` bytes are requested at a time; of these,
`CACHE_BYTES` are kept per process.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import hashlib
import io
import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from big_vision_lite.errors import UserError, first_line
from big_vision_lite.system.parse import open_regular

T = TypeVar("T")
READ_AHEAD = 8 << 20
NEAR = 1 << 20
"""A read that starts at most so many bytes after the end of the last one goes on with it."""
CACHE_BYTES = 512 << 20
ATTEMPTS = 5
FIRST_WAIT = 0.2
"""Seconds before a second attempt; doubled before each further one."""
SLOW = 60.0
"""Seconds after which a read counts as failed."""
HOPELESS = FileNotFoundError, PermissionError, IsADirectoryError

_log = logging.getLogger(__name__)
_LOCK = threading.Lock()


class Counts:
    """Of this process."""

    retried = 0
    """Requests that were made again."""
    failed = 0
    """Reads that failed after all attempts: an error, or a bad image."""


OpenFile: TypeAlias = "io.BufferedReader | RemoteFile"


def url_of(path: str) -> str | None:
    """A path that is a URL, also where `pathlib` has shortened its slashes; None for a local one."""
    match = re.match(r"([a-z][a-z0-9+.-]+):/+", path)
    return f"{match[1]}://{path[match.end():]}" if match else None


def listing(url: str, suffix: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """The folder and the files, by their names in it with (size, a number that changes with them), that a URL stands
    for: a file, a pattern, or a folder, of which also the folders in it.

    Raises:
      UserError: the store cannot be reached or read from here.
    """
    store, place = _store(url)

    def find() -> tuple[str, dict[str, Any]]:
        if any(letter in place for letter in "*?["):
            return re.split(r"[*?[]", place)[0].rpartition("/")[0], store.glob(place, detail=True)
        if place.lower().endswith(suffix):
            return place.rpartition("/")[0], {place: store.info(place)}
        return place, store.find(place, maxdepth=2, detail=True)

    try:
        folder, found = _again(find, url)
    except FileNotFoundError:
        folder, found = place, {}
    except OSError as error:
        raise UserError(f"cannot list {url}: {first_line(error)}; check the name, and that this machine may read it"
                        ) from error
    folder = folder.rstrip("/")
    root = url.partition("://")[0] + "://" + folder.lstrip("/")
    files = {name[len(folder):].lstrip("/"): (int(info["size"]), _version(info)) for name, info in found.items()
             if info.get("type") == "file" and name.lower().endswith(suffix)}
    return root, files


def open_file(path: str) -> OpenFile:
    """A file for reading, local or remote. Raises: OSError."""
    return RemoteFile(path) if url_of(path) else open(open_regular(path), "rb")


def pread(file: OpenFile, size: int, offset: int) -> bytes:
    """Bytes of an opened file, whose position stays. Raises: OSError."""
    return file.pread(size, offset) if isinstance(file, RemoteFile) else os.pread(file.fileno(), size, offset)


def size_of(file: OpenFile) -> int:
    """Bytes of an opened file."""
    return file.size if isinstance(file, RemoteFile) else os.fstat(file.fileno()).st_size


class RemoteFile(io.RawIOBase):
    """An object in a store, as a file. Threads may share `pread`."""

    def __init__(self, url: str):
        self.url = url
        self._number = next(_numbers)  # not the URL, whose object may be replaced
        self._at = self._last_end = 0

    @functools.cached_property
    def size(self) -> int:
        store, place = _store(self.url)
        return int(_again(lambda: store.info(place), self.url)["size"])

    def pread(self, size: int, offset: int) -> bytes:
        """Bytes ``offset`` to ``offset + size``; fewer where the file ends. Raises: OSError."""
        goes_on = 0 <= offset - self._last_end <= NEAR
        self._last_end = offset + size
        if not goes_on or size >= READ_AHEAD:
            return self._request(offset, offset + size)
        blocks = range(offset // READ_AHEAD, (offset + size - 1) // READ_AHEAD + 1) if size else ()
        joined = b"".join(self._block(number) for number in blocks)
        start = offset % READ_AHEAD
        return joined[start : start + size]

    def _block(self, number: int) -> bytes:
        with _LOCK:
            if (self._number, number) in _blocks:
                _blocks.move_to_end((self._number, number))
                return _blocks[self._number, number]
        block = self._request(number * READ_AHEAD, (number + 1) * READ_AHEAD)
        with _LOCK:
            _blocks[self._number, number] = block
            while sum(map(len, _blocks.values())) > CACHE_BYTES:
                _blocks.popitem(last=False)
        return block

    def _request(self, start: int, stop: int) -> bytes:
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        store, place = _store(self.url)
        return _again(lambda: store.cat_file(place, start, stop), self.url)

    def readinto(self, buffer: Any) -> int:
        data = self.pread(len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: 0}[whence]
        if whence == os.SEEK_END:
            self._at += self.size
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


_numbers = itertools.count()
_blocks: collections.OrderedDict[tuple[int, int], bytes] = collections.OrderedDict()
"""By the number of the opened file and of the block in it."""


@functools.cache
def _threads(process: int) -> concurrent.futures.ThreadPoolExecutor:
    """In which requests wait, so that a slow one can be given up; anew in a process that was forked."""
    return concurrent.futures.ThreadPoolExecutor(64, "requests")


def _again(request: Callable[[], T], url: str) -> T:
    """The result of a request, which is made again after failures. Raises: OSError, in one line."""
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _threads(os.getpid()).submit(request).result(SLOW)
        except HOPELESS:
            raise
        except TimeoutError:
            problem = f"no answer within {SLOW:g} s"
        except Exception as error:  # HTTP's, credentials', a cloud's: no common type
            problem = f"{type(error).__name__}: {first_line(error)}"
        if attempt < ATTEMPTS:
            with _LOCK:
                Counts.retried += 1
            if Counts.retried & (Counts.retried - 1) == 0:  # the 1st, 2nd, 4th, ... so that an outage fills no screen
                _log.warning("%s: %s; tried again (%d such so far)", url, problem, Counts.retried)
            time.sleep(wait)
            wait *= 2
    with _LOCK:
        Counts.failed += 1
    raise OSError(f"{problem}, {ATTEMPTS} times")


@functools.cache
def _store(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises: UserError when a package is missing."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = "; pip install 'big_vision_lite[gcs]'" if url.startswith("gs://") else ""
        raise UserError(f"{url} cannot be read from here: {first_line(error)}{extra}") from error


def _version(info: dict[str, Any]) -> int:
    """A number that is another one when the object is."""
    keys = "generation", "etag", "ETag", "md5Hash", "crc32c", "mtime", "LastModified", "updated", "created"
    known = repr([str(info[key]) for key in keys if key in info][:1])
    return int.from_bytes(hashlib.blake2b(known.encode(), digest_size=8).digest(), "little", signed=True)
