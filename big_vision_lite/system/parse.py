"""Outside data as declared types: files are checked where they are read, with msgspec, so that code behind this border
meets only what it expects."""

from __future__ import annotations

import codecs
import errno
import math
import os
import stat
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar

import msgspec

from big_vision_lite.errors import reading
from big_vision_lite.system.paths import RemotePath

T = TypeVar("T")
BOM = b"\xef\xbb\xbf"
_PIECE = 2**24


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
        with open(open_regular(path, limit), "rb") as file:
            return file.read()


def open_regular(path: Path | str, limit: float = math.inf) -> int:
    """The descriptor of a file opened for reading that is neither a pipe nor a device, which may never end.

    Args:
      limit: size in bytes that such a file never exceeds.

    Raises:
      OSError: it cannot be opened, is no regular file, or is too large.
      ValueError: a NUL in the name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than the {limit:,.0f} such a file can have",
                  str(path))


def read_text(path: Path, advice: str = "", limit: float = math.inf) -> str:
    """The text of a regular file in UTF-8, without a byte order mark. Raises: UserError as `read_bytes`, or the bytes
    are no UTF-8."""
    with reading(path, advice, UnicodeDecodeError):
        return read_bytes(path, advice, limit).removeprefix(BOM).decode()


def read_json(path: Path, kind: type[T] | GenericAlias, advice: str = "") -> T:
    """A JSON file as ``kind``. Raises: UserError as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, advice), kind, path, advice)


def parse_json(data: bytes | str, kind: type[T] | GenericAlias, source: object, advice: str = "") -> T:
    """JSON as ``kind``, a type that msgspec knows: a Struct, a dataclass, ``dict[str, int]``, ``Any``, ...

    Args:
      source: what it was read from, for messages.

    Raises:
      UserError: it is no JSON (which knows neither NaN nor Infinity), or not of this type; the message says where.
    """
    decoder = msgspec.json.Decoder(kind)  # a type that msgspec does not know is no fault of the data
    with reading(source, advice):
        data = data.encode() if isinstance(data, str) else data
        _check_utf8(data)
        return decoder.decode(data.removeprefix(BOM))


def _check_utf8(data: bytes) -> None:
    """msgspec passes over the bytes of fields that ``kind`` lacks. In pieces, as the text may be four times as large.
    Raises: UnicodeDecodeError."""
    if not data.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(data), _PIECE):
            decoder.decode(data[start:start + _PIECE], final=start + _PIECE >= len(data))


def convert(values: Any, kind: type[T] | GenericAlias, source: object, advice: str = "", strict: bool = True) -> T:
    """Values of another parser, such as TOML's, as ``kind``; those of one that only knows text, such as XML's, with
    ``strict=False``. Raises: UserError as `parse_json`."""
    with reading(source, advice, (msgspec.ValidationError, RecursionError)):
        return msgspec.convert(values, kind, strict=strict)
