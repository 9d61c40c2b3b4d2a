"""Images without labels: all of a folder, however it is arranged."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from big_vision_lite.data.columns import PIECE_ROWS, Columns, with_keys
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Source
from big_vision_lite.data.sources.files import (
    FileDataset,
    Fingerprint,
    compact,
    files_identity,
    is_folder,
    is_image,
    scan,
    text_at,
)
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class UnlabelledFolder(Source):
    """All images in a folder and below it, without labels: for heads that need none, and for ``bvl pseudolabel``.

    The id of an example is its path relative to ``root``, and examples are in the order of their ids. On the command
    line a folder of images alone is one, and ``unlabelled:root=FOLDER`` for any folder.
    """

    root: str = ""
    """Folder; ``~`` is allowed. Folders in it mean nothing."""
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`."""

    precedence: ClassVar[int] = 0

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        """The word ``unlabelled``, or a folder that has images and no folders."""
        if str(path) == "unlabelled" and not path.exists():
            return {}
        if not path.is_dir():
            return None
        visible = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
        only_files = not any(is_folder(entry) for entry in visible)
        return {"root": str(path)} if only_files and any(is_image(entry.name) for entry in visible) else None

    def open(self) -> UnlabelledFolderDataset:
        """Lists the folder; no image is read. Raises: UserError when there is no such folder, or no image in it."""
        root = os.path.expanduser(self.root)
        if not os.path.isdir(root):
            raise UserError(f"UnlabelledFolder.root is {self.root!r}, not a folder; expected one with images in it "
                            "or below it")
        ignored: Counter[str] = Counter()
        found = sorted(scan(root, ignored=ignored))
        if not found:
            other = f", but {sum(ignored.values()):,} other files" if ignored else ""
            raise UserError(f"there are no images in {self.root!r} or below it{other}; expected *.jpg, *.png or others")
        names = [name for name, _, _ in found]
        stats = np.array([of_file for _, *of_file in found], np.int64)
        digest = hashlib.blake2b("\0".join(names).encode(errors="surrogateescape"), digest_size=8).hexdigest()
        identity = files_identity(root, names, stats, self.fingerprint)
        return UnlabelledFolderDataset((), True, f"unlabelled-{digest}-{identity}", root, compact(names))


@dataclasses.dataclass(eq=False)
class UnlabelledFolderDataset(FileDataset):
    """Files below a folder."""

    unlabelled: bool = True

    def __getitem__(self, index: int) -> Example:
        return super().__getitem__(index) | {"unlabelled": True}

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        return text_at(self.names, range(len(self))[index]), np.zeros(0, np.int32)

    def column_pieces(self) -> Iterator[Columns]:
        for start in range(0, len(self), PIECE_ROWS):
            ids = self.names.slice(start, PIECE_ROWS)
            yield with_keys(ids, Ragged(np.zeros(len(ids), np.int64), np.zeros(0, np.int32)))
