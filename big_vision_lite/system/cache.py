"""The cache of what can be computed again: label indices, manifests, indices of tar files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

CHECKSUM_BYTES = 16


def cache_dir() -> Path:
    """``$BVL_CACHE``, or ``~/.cache/big_vision_lite``. It may be removed at any time."""
    return Path(os.environ.get("BVL_CACHE") or "~/.cache/big_vision_lite").expanduser()


def shared_dir() -> Path | None:
    """``$BVL_SHARED``: a folder that `bvl data index` has filled, and that all machines of a run read."""
    return Path(os.environ["BVL_SHARED"]).expanduser() if os.environ.get("BVL_SHARED") else None


def cached_path(*parts: str) -> Path:
    """Where something is cached: in `shared_dir`, if it is there, else in `cache_dir`."""
    shared = shared_dir()
    if shared is not None and (path := shared.joinpath(*parts)).exists():
        return path
    return cache_dir().joinpath(*parts)


@contextlib.contextmanager
def cached_file(path: Path) -> Iterator[Path]:
    """A temporary path whose file or folder becomes ``path`` if the block ends without an error. Of several writers of
    a folder the first wins. Where the cache cannot be written, the result is silently dropped."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    writable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
    with tempfile.TemporaryDirectory(dir=path.parent if writable else None, prefix="incomplete.") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        if writable:
            with contextlib.suppress(OSError):  # another process has made this folder meanwhile
                temporary.rename(path)


def cached_bytes(path: Path, make: Callable[[], bytes]) -> bytes:
    """What ``make`` returns, from the cache if it is there and sound: the file ends in a checksum, and a damaged one
    is made again."""
    with contextlib.suppress(OSError):
        stored = path.read_bytes()
        data = stored[:-CHECKSUM_BYTES]
        if stored == data + _checksum(data):
            return data
    data = make()
    with contextlib.suppress(OSError), cached_file(path) as temporary:
        temporary.write_bytes(data + _checksum(data))
    return data


def cached_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """As `cached_bytes`, an array."""

    def made() -> bytes:
        file = io.BytesIO()
        np.save(file, make(), allow_pickle=False)
        return file.getvalue()

    return np.load(io.BytesIO(cached_bytes(path, made)), allow_pickle=False)


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()
