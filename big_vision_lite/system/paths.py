"""Paths of a bucket, with the interface of `pathlib`.

An object store holds whole objects by name: no appending, no renaming, no folders. Files that a run appends to are
therefore kept on a local disk and uploaded as a whole.

Why not `etils.epath`: it passes gs:// to TensorFlow where that is installed, its ``is_dir`` takes an outage for "no",
and its ``rename`` needs the target folder to exist and deletes in any order.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import functools
import importlib.util
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath
from typing import Any

from big_vision_lite.errors import UserError

SCHEME = "gs://"


def scheme(path: Path) -> str | None:
    """The scheme of a path that is a URL, such as ``gs:/`` (`Path` drops one of the slashes); None for others."""
    match = re.match(r"[a-z][a-z0-9+.-]+:/", str(path))
    return match and match[0]


def as_path(path: Path | str) -> Path:
    """The path; ``gs://BUCKET/...`` as a `RemotePath`, also where `Path` has shortened it to ``gs:/``.

    Raises:
      UserError: the path is in a bucket, and gcsfs is not installed.
    """
    if isinstance(path, RemotePath):
        return path
    if not str(path).startswith("gs:/"):
        return Path(path)
    _store()
    return RemotePath(path)


class RemotePath(PosixPath):
    """A path ``gs://BUCKET/...``, with those methods of `Path` that an object store can answer.

    They raise OSError, whatever the store's client raises.
    """

    def __str__(self) -> str:
        return SCHEME + super().__str__().removeprefix("gs:").lstrip("/")

    def __fspath__(self) -> str:
        return str(self)

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    absolute = expanduser = resolve

    def exists(self, **unused: Any) -> bool:
        return self._kind() is not None

    def is_file(self, **unused: Any) -> bool:
        return self._kind() == "file"

    def is_dir(self, **unused: Any) -> bool:
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            return _call(lambda store: store.info(str(self)))["type"]
        except FileNotFoundError:
            return None

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists as soon as an object is in it."""

    def read_bytes(self) -> bytes:
        return _call(lambda store: store.cat_file(str(self)))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        """Replaces the object as a whole."""
        _call(lambda store: store.pipe_file(str(self), data))
        return len(data)

    def read_generation(self) -> tuple[bytes, int]:
        """The content and the generation of an object, which is another one after each change."""
        headers, content = _call(lambda store: store.call("GET", "b/{}/o/{}", *store.split_path(str(self))[:2],
                                                          alt="media"))
        return content, int(headers["x-goog-generation"])

    def write_if(self, generation: int, data: bytes) -> int:
        """Replace the object if it has this generation (0: if there is none). Returns the new generation.

        Raises:
          FileExistsError: it has another one.
        """
        def write(store: Any) -> dict[str, Any]:
            bucket, name, _ = store.split_path(str(self))
            return store.call("POST", f"{store._location}/upload/storage/v1/b/{bucket}/o", uploadType="media",
                              name=name, ifGenerationMatch=str(generation), data=data, json_out=True)

        return int(_call(write)["generation"])

    def unlink_if(self, generation: int) -> None:
        """Remove the object if it has this generation. Raises: FileExistsError when it has another one."""
        _call(lambda store: store.call("DELETE", "b/{}/o/{}", *store.split_path(str(self))[:2],
                                       ifGenerationMatch=str(generation)))

    def checksums(self) -> dict[str, tuple[int, int, str]]:
        """Size, CRC-32C and MD5 (hexadecimal; "" where the bucket knows none) of each object below this folder, by path
        in it: from a listing, without the contents."""
        listed = _call(lambda store: store.find(str(self), detail=True)).values()
        start = len(str(self).removeprefix(SCHEME)) + 1
        return {entry["name"].removeprefix(SCHEME)[start:]: (
                    int(entry["size"]), int.from_bytes(base64.b64decode(entry["crc32c"]), "big"),
                    base64.b64decode(entry.get("md5Hash", "")).hex()) for entry in listed if "crc32c" in entry}

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """For reading only."""
        if mode not in ("r", "rt", "rb"):
            raise io.UnsupportedOperation(f"{self}: objects of a bucket are written as a whole")
        return io.BytesIO(self.read_bytes()) if mode == "rb" else io.StringIO(self.read_text())

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _call(lambda store: store.rm_file(str(self)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> Iterator[RemotePath]:
        names = _call(lambda store: store.ls(str(self), detail=False))
        paths = (RemotePath(SCHEME + name.removeprefix(SCHEME)) for name in names)
        return iter(sorted(path for path in paths if path != self))

    def glob(self, pattern: str, **unused: Any) -> Iterator[RemotePath]:
        """Directly below this folder only."""
        if "/" in pattern or "**" in pattern:
            raise NotImplementedError(f"{pattern!r}: a bucket is searched one level deep only")
        with contextlib.suppress(FileNotFoundError):
            yield from (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def rename(self, target: Any) -> RemotePath:
        """Copies each object, then deletes the originals: not atomic. The commit mark of a checkpoint is deleted first,
        so that what an interruption leaves behind does not pass for a complete checkpoint."""
        names = [SCHEME + name.removeprefix(SCHEME) for name in _call(lambda store: store.find(str(self)))]
        if not names:
            raise FileNotFoundError(str(self))
        for name in names:
            copy = str(target) + name.removeprefix(str(self))
            _call(lambda store, name=name, copy=copy: store.cp_file(name, copy))
        for name in sorted(names, key=lambda name: (not name.endswith("commit_success.txt"), name)):
            RemotePath(name).unlink()
        return RemotePath(target)


def upload(folder: Path, target: Path, sizes: dict[str, int] | None = None) -> None:
    """Copy each file below a local folder to its place below ``target``.

    Args:
      sizes: of the files uploaded so far, by name; files of the same size are skipped. It is updated.
    """
    sizes = {} if sizes is None else sizes
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        if sizes.get(name) != len(data):
            (target / name).write_bytes(data)
            sizes[name] = len(data)


@functools.cache
def _store() -> Any:
    """The client of the store. Raises: UserError when it is not installed."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError("a folder at gs:// needs gcsfs, which is not installed; pip install 'big_vision_lite[gcs]', or "
                        "choose a folder on a disk")
    import fsspec

    # Orbax and TensorStore change the bucket through clients of their own: a cached listing would be stale.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs")


def _call(request: Callable[[Any], Any]) -> Any:
    try:
        return request(_store())
    except (FileNotFoundError, FileExistsError, UserError):
        raise
    except Exception as error:  # HTTP's, credentials', Google's: no common type, and several lines long
        text = " ".join(str(error).split()) or "no reason is given"
        raise OSError(f"{type(error).__name__}: {text[:200]}") from error
