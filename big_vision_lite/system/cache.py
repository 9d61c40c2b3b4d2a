"""The cache of what can be computed again: label indices, manifests, indices of tar files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_dir() -> Path:
    """``$BVL_CACHE``, or ``~/.cache/big_vision_lite``. It may be removed at any time."""
    return Path(os.environ.get("BVL_CACHE") or "~/.cache/big_vision_lite").expanduser()


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
