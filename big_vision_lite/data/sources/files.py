"""What sources of plain files share: a dataset of image files, compact lists of names, checks, and reading."""

# No annotations as text here: pdoc looks those that a subclass inherits up in the module of the subclass.

import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.errors import BadImageError, UserError

EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "heic"))


def is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


def compact(texts: Iterable[str | bytes]) -> pa.LargeBinaryArray:
    """Texts as bytes, one after the other: 1,000,000 of 20 characters take 28 MB, where Python's would take 70."""
    return pa.array([os.fsencode(text) for text in texts], pa.large_binary())


def text_at(texts: pa.LargeBinaryArray, index: int) -> str:
    return os.fsdecode(texts[index].as_py())


def read_file(path: str, id_: str) -> bytes:
    """Raises: BadImageError when it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise BadImageError(id_, error.strerror or str(error)) from error


def read_lines(path: str | Path, field: str, expected: str) -> list[str]:
    """The lines of a text file in UTF-8, stripped, without empty ones.

    Raises:
      UserError: the file cannot be read. The message says which ``field`` names it, and what is ``expected`` in it.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {field} {str(path)!r}: {error}; expected {expected}") from None
    return [line.strip() for line in lines if line.strip()]


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
    """Files that threads read at given offsets. They are opened when first read, anew in every process.

    Args:
      max_open: with more paths than this, files are opened for each read.
    """

    def __init__(self, paths: Sequence[str], max_open: int | None = None):
        self.paths, self.max_open = paths, max_open
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Fewer bytes where the file ends. Raises: OSError."""
        if self.max_open is not None and len(self.paths) > self.max_open:
            with open(self.paths[file], "rb", buffering=0) as opened:
                return os.pread(opened.fileno(), size, offset)
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self.paths[file], os.O_RDONLY)
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
    """Raises: UserError when there is no class, or two have the same name."""
    if not names:
        raise UserError(f"{where} has no classes; expected at least one")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(f"{where} has the class {twice!r} twice; class names must be unique")


def check_files(root: str, names: Iterable[tuple[str, str]]) -> None:
    """Checks that files exist, listing each folder once instead of asking for every file.

    Args:
      names: (relative path, where it was found) of each file.

    Raises:
      UserError: files are missing; names the first.
    """
    listed: dict[str, set[str]] = {}
    missing, first = 0, None
    for name, where in names:
        folder, _, file = name.rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(os.path.join(root, folder)))
            except OSError:
                listed[folder] = set()
        if file not in listed[folder]:
            missing, first = missing + 1, first or (name, where)
    if first:
        raise UserError(f"{first[1]}: there is no file {os.path.join(root, first[0])!r} ({missing:,} are missing); "
                        "copy the images there or name their folder")
