"""Outside data as declared types: files are checked where they are read, with msgspec, so that code behind this border
meets only what it expects."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from big_vision_lite.errors import UserError, reading
from big_vision_lite.system.paths import RemotePath

T = TypeVar("T")
BOM = b"\xef\xbb\xbf"


def read_bytes(path: Path, advice: str = "", limit: float = math.inf) -> bytes:
    """The bytes of a regular file, or of an object in a bucket.

    Args:
      advice: what to do when it cannot be read, for the message.
      limit: size in bytes that such a file never exceeds.

    Raises:
      UserError: there is no such file, or it cannot be read, is a pipe or a device (which may never end) or too large.
    """
    with reading(path, advice, (OSError, MemoryError, ValueError)):  # ValueError: a NUL in the name
        if isinstance(path, RemotePath):
            return path.read_bytes()
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"cannot read {path}: it is not a regular file" + (f"; {advice}" if advice else ""))
            if status.st_size > limit:
                raise UserError(f"cannot read {path}: it has {status.st_size:,} bytes, more than the {limit:,.0f} "
                                "such a file can have" + (f"; {advice}" if advice else ""))
            return file.read()


def read_text(path: Path, advice: str = "", limit: float = math.inf) -> str:
    """The text of a regular file in UTF-8, without a byte order mark. Raises: UserError as `read_bytes`, or the bytes
    are no UTF-8."""
    with reading(path, advice, UnicodeDecodeError):
        return read_bytes(path, advice, limit).removeprefix(BOM).decode()


def read_json(path: Path, kind: type[T], advice: str = "") -> T:
    """A JSON file as ``kind``. Raises: UserError as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, advice), kind, path, advice)


def parse_json(data: bytes | str, kind: type[T], source: object, advice: str = "") -> T:
    """JSON as ``kind``, a type that msgspec knows: a Struct, a dataclass, ``dict[str, int]``, ``Any``, ...

    Args:
      source: what it was read from, for messages.

    Raises:
      UserError: it is no JSON (which knows neither NaN nor Infinity), or not of this type; the message says where.
    """
    with reading(source, advice):
        data = data.encode() if isinstance(data, str) else data
        return msgspec.json.decode(data.removeprefix(BOM), type=kind)


def convert(values: Any, kind: type[T], source: object, advice: str = "") -> T:
    """Values of another parser, such as TOML's, as ``kind``. Raises: UserError as `parse_json`."""
    with reading(source, advice, (msgspec.ValidationError, RecursionError)):
        return msgspec.convert(values, kind)
