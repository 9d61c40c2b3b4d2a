"""Files that are complete or absent, whenever the process ends."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from big_vision_lite.system.paths import RemotePath


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary local file, with the suffix of ``path``, that replaces it if the block ends without an error."""
    remote = isinstance(path, RemotePath)
    folder = Path(tempfile.gettempdir()) if remote else path.parent
    temporary = folder / f".{uuid.uuid4().hex[:8]}.{path.name}"
    try:
        yield temporary
        if remote:
            path.write_bytes(temporary.read_bytes())
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """In UTF-8."""
    write_bytes(path, text.encode())
