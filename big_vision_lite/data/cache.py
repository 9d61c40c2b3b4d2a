"""Where things are kept that can be made again: label indices, manifests, indices of tar files."""

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
def kept(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well; the first of several writers wins, and nobody
    ever sees a half-written file or folder. Where nothing can be written, what was made is lost silently: a cache
    is no reason to fail."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="incomplete.") as folder:
        made = Path(folder) / path.name
        yield made
        with contextlib.suppress(OSError):  # a folder that is there already is not replaced
            made.rename(path)
