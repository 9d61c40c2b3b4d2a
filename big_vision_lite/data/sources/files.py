"""What sources of plain files share: a dataset of image files, compact lists of names, checks, and reading."""

# No annotations as text here: pdoc looks those that a subclass inherits up in the module of the subclass.

import concurrent.futures
import dataclasses
import hashlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import pieces
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.data.sources.remote import RemoteFile, url_of
from big_vision_lite.errors import BadImageError, UserError, first_line, reading, same_in_unicode
from big_vision_lite.system.cache import cached_bytes, cached_path
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.system.parse import open_regular

T = TypeVar("T")
R = TypeVar("R")

EXTENSIONS = frozenset(("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "heic", "heif"))

MAX_FILE_BYTES = 1 << 30
"""Larger files are no images: one of the most pixels that are decoded (`decode.MAX_PIXELS`) takes less."""

Fingerprint = Literal["mtime", "content"]
"""What stands for the bytes of files in a fingerprint: their sizes and modification times, or a hash of each."""


def is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


def compact(texts: Iterable[str | bytes]) -> pa.LargeBinaryArray:
    """Texts as bytes, one after the other: 1,000,000 of 20 characters take 28 MB, where Python's would take 70."""
    return pa.array([os.fsencode(text) for text in texts], pa.large_binary())


def text_at(texts: pa.LargeBinaryArray, index: int) -> str:
    return os.fsdecode(texts[index].as_py())


def read_file(path: str, id_: str) -> bytes:
    """The bytes of an image. Raises: BadImageError when it cannot be read, is no regular file, or is far too large."""
    try:
        with open(open_regular(path, MAX_FILE_BYTES), "rb", buffering=0) as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadImageError(id_, first_line(error)) from error


def read_lines(path: str | Path, field: str, expected: str) -> list[str]:
    """The lines of a text file in UTF-8, stripped, without empty ones.

    Raises:
      UserError: the file cannot be read. The message says which ``field`` names it, and what is ``expected`` in it.
    """
    with (reading(f"{field} {str(path)!r}", f"expected {expected}", (OSError, ValueError)),
          open(open_regular(os.path.expanduser(path)), encoding="utf-8-sig") as file):
        return [line.strip() for line in file.read().splitlines() if line.strip()]


def scan(folder: str, wanted: Callable[[str], bool] = is_image, parents: tuple[str, ...] = (),
         ignored: Counter[str] | None = None, below: str = "") -> Iterator[tuple[str, int, int]]:
    """(path relative to ``folder`` with forward slashes, size in bytes, modification time in ns) of all wanted files in
    it and its subfolders, in any order; hidden ones are left out.

    Args:
      wanted: whether a file of this name is wanted.
      parents: the real paths of the enclosing folders: a link back to one of them is not followed.
      ignored: counts the other files by their extension.
    """
    current = os.path.realpath(f"{folder}/{below}")
    if current in parents:
        return
    with os.scandir(current) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_folder(entry):
                yield from scan(folder, wanted, (*parents, current), ignored, f"{below}{entry.name}/")
            elif wanted(entry.name):
                yield below + entry.name, *_size_and_time(entry.path)
            elif ignored is not None:
                ignored[os.path.splitext(entry.name)[1]] += 1


def is_folder(entry: os.DirEntry) -> bool:
    """Also through a link; a link to itself leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def by_stem(names: Iterable[str], folder: str) -> dict[str, str]:
    """File names by their paths without extension. Raises: UserError when two differ in nothing else."""
    name_of: dict[str, str] = {}
    for name in names:
        stem = name.rpartition(".")[0]
        if name_of.setdefault(stem, name) != name:
            first, second = sorted((name_of[stem], name))
            raise UserError(f"{folder!r} has both {first!r} and {second!r}; expected one file per name: move one of "
                            "them elsewhere")
    return name_of


@dataclasses.dataclass(eq=False)
class FileDataset(Dataset):
    """Image files below a folder. The id of an example is the path of its file. Subclasses know the ``labels``."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    root: str
    names: pa.LargeBinaryArray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        id_, labels = self.labels(index)
        return {"id": id_, "image": read_file(f"{self.root}/{id_}", id_), "labels": labels}


class OpenFiles:
    """Files, local or in a bucket, that threads read at given offsets. They are opened when first read, anew in every
    process.

    Args:
      max_open: with more paths than this, files are opened for each read.
    """

    def __init__(self, paths: Sequence[str], max_open: int | None = None):
        self.paths, self.max_open = paths, max_open
        self._descriptors: dict[int, int] = {}
        self._remote: dict[int, RemoteFile] = {}
        self._lock = threading.Lock()

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Fewer bytes where the file ends. Raises: OSError."""
        if url_of(self.paths[file]):
            with self._lock:
                opened = self._remote.setdefault(file, RemoteFile(self.paths[file]))
            return opened.pread(size, offset)
        if self.max_open is not None and len(self.paths) > self.max_open:
            with open(open_regular(self.paths[file]), "rb", buffering=0) as opened:
                return os.pread(opened.fileno(), size, offset)
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = open_regular(self.paths[file])
        return os.pread(self._descriptors[file], size, offset)

    def __reduce__(self):
        return OpenFiles, (self.paths, self.max_open)

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def check_inside(name: str, where: str) -> None:
    """Raises: UserError when a file name is absolute or leads out of its folder."""
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise UserError(f"{where}: {name!r} leads out of its folder; expected a path within it")


def check_classes(names: Sequence[str], where: str) -> None:
    """Raises: UserError when there is no class, two have the same name, or a name is not a line of text."""
    if not names:
        raise UserError(f"{where} has no classes; expected at least one")
    if odd := [name for name in names if name.splitlines() != [name] or not name.strip() or "\0" in name]:
        raise UserError(f"{where} has the class {odd[0]!r}; expected a line of text")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(f"{where} has the class {twice!r} twice; class names must be unique")


def check_files(root: str, names: Iterable[tuple[str, str]], fingerprint: Fingerprint = "mtime") -> str:
    """Checks that files exist.

    Args:
      names: (relative path, where it was found) of each file.

    Returns:
      `files_identity` of them.

    Raises:
      UserError: files are missing; names the first.
    """
    entries = list(names)
    paths = [path for path, _ in entries]
    stats = sizes_and_times(root, compact(paths))
    missing = np.flatnonzero(stats[:, 0] < 0)
    if len(missing):
        raise missing_file(root, *entries[missing[0]], len(missing))
    return files_identity(root, paths, stats, fingerprint)


def sizes_and_times(root: str, names: pa.LargeBinaryArray) -> np.ndarray:
    """int64 ``[n, 2]``: sizes in bytes and modification times in ns of files below ``root``; -1 where there is none."""
    folder = os.fsencode(root) + b"/"
    return np.concatenate([np.zeros((0, 2), np.int64)] + [
        np.array(in_threads(lambda name: _size_and_time(folder + name), piece.to_pylist()), np.int64)
        for piece in pieces(names)])


def missing_file(root: str, path: str, where: str, missing: int) -> UserError:
    """Says that a file is missing, as are ``missing`` in all, and ``where`` it was named."""
    folder, name = os.path.split(os.path.join(root, path))
    listed = os.listdir(folder) if os.path.isdir(folder) else []
    return UserError(f"{where}: there is no file {os.path.join(folder, name)!r} ({missing:,} are missing)"
                     + (same_in_unicode(name, listed) or "; copy the images there or name their folder"))


def files_identity(root: str, names: Iterable[str], stats: np.ndarray, fingerprint: Fingerprint) -> str:
    """A digest of files that changes when they do.

    Args:
      names: paths relative to ``root``.
      stats: int64 ``[n, 2]``: their sizes and modification times in ns.
      fingerprint: whether to go by these or by the bytes of all files, whose hashes are cached as long as these are
        the same.
    """
    times = hashlib.blake2b(np.ascontiguousarray(stats, np.int64).tobytes(), digest_size=8)
    if fingerprint == "mtime":
        return times.hexdigest()
    paths = [f"{root}/{name}" for name in names]
    times.update("\0".join((os.path.realpath(root), *paths)).encode(errors="surrogateescape"))
    return content_identity(paths, _hash_of_file, times.hexdigest())


def content_identity(items: Sequence[T], hash_of: Callable[[T], bytes], key: str) -> str:
    """A digest of the hashes of all items, cached under ``key``."""
    def digest() -> bytes:
        return hashlib.blake2b(b"".join(in_threads(hash_of, items)), digest_size=8).digest()

    return cached_bytes(cached_path("content", key), digest).hex()


def _hash_of_file(path: str) -> bytes:
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:  # an error when it is read
        return b"unreadable"


def _size_and_time(path: str | bytes) -> tuple[int, int]:
    """-1 twice where there is no file, such as for a broken link."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return -1, -1
    return (-1, -1) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``function`` of each item: disks in a network take long to answer, but answer many at once."""
    chunks = [items[start : start + 256] for start in range(0, len(items), 256)]
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
        return [value for chunk in pool.map(lambda chunk: list(map(function, chunk)), chunks) for value in chunk]
