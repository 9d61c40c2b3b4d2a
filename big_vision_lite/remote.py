"""Folders in a bucket, as the paths that everything else works with.

An object store keeps whole objects by their names: nothing is appended to or renamed, and there are no folders. What a
run writes bit by bit it therefore keeps on its own machine, and puts it into the bucket as a whole.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib.util
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath
from typing import Any

from big_vision_lite.errors import UserError

SCHEME = "gs://"


def scheme(path: Path) -> str | None:
    """What a path that is an address begins with, such as ``gs:/``, which `Path` makes of it; None for others."""
    found = re.match(r"[a-z][a-z0-9+.-]+:/", str(path))
    return found and found[0]


def place(path: Path | str) -> Path:
    """The path; one of ``gs://BUCKET/...`` as a `RemotePath`, also after `Path` has made ``gs:/`` of its beginning.

    Raises:
      UserError: it is in a bucket, and what reads buckets is not installed.
    """
    if isinstance(path, RemotePath):
        return path
    if not str(path).startswith("gs:/"):
        return Path(path)
    _store()
    return RemotePath(path)


class RemotePath(PosixPath):
    """A path ``gs://BUCKET/...``, with those methods of `Path` that an object store can answer.

    All raise OSError, whatever the client of the store raises.
    """

    def __str__(self) -> str:
        return SCHEME + super().__str__().removeprefix("gs:").lstrip("/")

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def expanduser(self) -> RemotePath:
        return self

    def exists(self, **unused: Any) -> bool:
        return self._kind() is not None

    def is_file(self, **unused: Any) -> bool:
        return self._kind() == "file"

    def is_dir(self, **unused: Any) -> bool:
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            return _ask(lambda store: store.info(str(self)))["type"]
        except FileNotFoundError:
            return None

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there when an object is below it."""

    def read_bytes(self) -> bytes:
        return _ask(lambda store: store.cat_file(str(self)))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        """The object is there as a whole, or as it was before."""
        _ask(lambda store: store.pipe_file(str(self), data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None,
                   newline: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """For reading alone."""
        if mode not in ("r", "rt", "rb"):
            raise io.UnsupportedOperation(f"{self}: objects of a bucket are written as a whole")
        return io.BytesIO(self.read_bytes()) if mode == "rb" else io.StringIO(self.read_text())

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _ask(lambda store: store.rm_file(str(self)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> Iterator[RemotePath]:
        names = _ask(lambda store: store.ls(str(self), detail=False))
        found = (RemotePath(SCHEME + name.removeprefix(SCHEME)) for name in names)
        return iter(sorted(path for path in found if path != self))

    def glob(self, pattern: str, **unused: Any) -> Iterator[RemotePath]:
        """Those directly below."""
        if "/" in pattern or "**" in pattern:
            raise NotImplementedError(f"{pattern!r}: only names directly below {self} are looked for")
        with contextlib.suppress(FileNotFoundError):
            yield from (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def rename(self, target: Any) -> RemotePath:
        """A copy of each object in the store, then the old ones go: not at once. The mark of a complete checkpoint is
        the first to go, so that what is left of an end in between does not pass for one."""
        names = [SCHEME + name.removeprefix(SCHEME) for name in _ask(lambda store: store.find(str(self)))]
        if not names:
            raise FileNotFoundError(str(self))
        for name in names:
            copy = str(target) + name.removeprefix(str(self))
            _ask(lambda store, name=name, copy=copy: store.cp_file(name, copy))
        for name in sorted(names, key=lambda name: (not name.endswith("commit_success.txt"), name)):
            RemotePath(name).unlink()
        return RemotePath(target)


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file of this machine to be written: ``path`` itself, or one that is put there as a whole at the end."""
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / path.name
        yield here
        path.write_bytes(here.read_bytes())


def upload(folder: Path, target: Path, done: dict[str, int] | None = None) -> None:
    """Put each file below a folder of this machine to its place below ``target``.

    Args:
      done: sizes of the files that are there already, by name; those that have not grown since are left out.
    """
    done = {} if done is None else done
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        if done.get(name) != len(data):
            (target / name).write_bytes(data)
            done[name] = len(data)


@functools.cache
def _store() -> Any:
    """The client of the store. Raises: UserError when it is not installed."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError("a folder at gs:// needs gcsfs, which is not installed; pip install 'big_vision_lite[gcs]', or "
                        "choose a folder on a disk")
    import fsspec

    # Orbax looks at the same bucket through a client of its own, and TensorStore writes past both: no listing that is
    # remembered stays true.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs")


def _ask(question: Callable[[Any], Any]) -> Any:
    try:
        return question(_store())
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # of HTTP, of credentials, of Google's: without a common type, and of several lines
        text = " ".join(str(error).split()) or "no reason is given"
        raise OSError(f"{type(error).__name__}: {text[:200]}") from error
