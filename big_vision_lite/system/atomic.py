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
    """Raises: OSError, which names the file."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        if error.errno is not None:  # else it is a bucket's, whose text says all
            error.filename = str(path)  # not the temporary file, or none, as when the disk is full
        raise


def write_text(path: Path, text: str) -> None:
    """In UTF-8. Raises: as `write_bytes`."""
    write_bytes(path, text.encode())
