"""What sources of plain files share: many names in little memory, and reading one file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from big_vision_lite.errors import BadImageError, UserError


class Strings(NamedTuple):
    """Texts one after the other: 1,000,000 of 20 characters take 28 MB, where Python's would take 70."""

    ends: np.ndarray
    """int64 ``[n]``: where each text ends in ``joined``."""
    joined: bytes

    @classmethod
    def of(cls, texts: Iterable[str | bytes]) -> Strings:
        encoded = [os.fsencode(text) for text in texts]
        return cls(np.cumsum([len(text) for text in encoded], dtype=np.int64), b"".join(encoded))

    def raw(self, index: int) -> bytes:
        return self.joined[self.ends[index - 1] if index else 0 : self.ends[index]]

    def at(self, index: int) -> str:
        return os.fsdecode(self.raw(index))


def read_file(path: str, id_: str) -> bytes:
    """Raises: BadImageError when it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise BadImageError(id_, error.strerror or str(error)) from error


def check_inside(name: str, where: str) -> None:
    """Raises: UserError when a relative file name leaves its folder, or is not relative."""
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise UserError(f"{where}: {name!r} leads out of its folder; expected a name below it")


def check_classes(names: Sequence[str], where: str) -> None:
    """Raises: UserError when there is no class, or one is named twice."""
    if not names:
        raise UserError(f"{where} names no class; expected at least one")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(f"{where} names the class {twice!r} twice; expected each name once, for its place is its id")


def check_files(root: str, names: Iterable[tuple[str, str]]) -> None:
    """One look at the folders, so that a million names cost no million questions.

    Args:
      names: (relative path, where it was said) of the files that must be there.

    Raises:
      UserError: some are not there; names the first.
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
        raise UserError(f"{first[1]}: there is no file {os.path.join(root, first[0])!r} ({missing:,} such); copy the "
                        "images there or name their folder")
