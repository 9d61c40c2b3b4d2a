"""Images in plain folders, one folder per class: ``root/train/cat/1.jpg`` or ``root/cat/1.jpg``."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.files import EXTENSIONS, FileDataset, compact, is_image, text_at
from big_vision_lite.data.sources.splits import SPLITS, check_held_out, hashed_split, standard_split
from big_vision_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class ImageFolder(Source):
    """Images in ``root/split/class/`` or ``root/class/``, including subfolders; hidden files are ignored.

    Classes are the sorted folder names of the train split, for all splits. The id of an example is its path relative to
    ``root``.

    Without split folders, each image is assigned to a split by a hash of that path: adding, removing or reordering
    other files never moves it. ``root`` has split folders if a folder with the name of a split contains folders and no
    images.
    """

    root: str = ""
    """Folder; ``~`` is allowed."""
    split: str = "train"
    """train, validation (or val, valid), test, or the name of any other folder next to train."""
    held_out: float = 0.1
    """Without split folders: the fraction of images for validation, and again for test; below 0.5."""

    precedence: ClassVar[int] = -1  # any folder will do

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"root": str(path)} if path.is_dir() else None

    def __post_init__(self):
        check_held_out(self)

    def open(self) -> ImageFolderDataset:
        """Lists the folder; no image is read.

        Raises:
          UserError: no such folder or split, no classes, a class without images, or a class that train lacks.
        """
        root = os.path.expanduser(self.root)
        if not os.path.isdir(root):
            raise UserError(f"ImageFolder.root is {self.root!r}, not a folder; expected root/class/*.jpg")
        folders = _folders(root)
        names = {alias for aliases in SPLITS.values() for alias in aliases}
        if any(_has_only_folders(os.path.join(root, name)) for name in names.intersection(folders)):
            return self._open_split(root, folders)
        return self._open_flat(root)

    def _open_split(self, root: str, folders: list[str]) -> ImageFolderDataset:
        split = _find_split(self.split, folders)
        if split is None:
            raise UserError(f"{self.root!r} has no split {self.split!r}{nearest(self.split, folders)}")
        train = _find_split("train", folders)
        if train is None:
            raise UserError(f"{self.root!r} has no folder 'train', only {', '.join(folders)}; add it, with one folder "
                            "per class, which may be empty: it defines the class ids")
        classes = _classes(os.path.join(root, train))
        split_classes = _classes(os.path.join(root, split))
        if unknown := sorted(set(split_classes) - set(classes)):
            raise UserError(f"class {unknown[0]!r} is in {os.path.join(root, split)!r} but not in train"
                            + (f" ({len(unknown)} such classes)" if len(unknown) > 1 else "")
                            + nearest(unknown[0], classes))
        return _scan(root, f"{split}/", split_classes, classes)

    def _open_flat(self, root: str) -> ImageFolderDataset:
        split = standard_split(self.split)
        if split is None:
            raise UserError(f"{self.root!r} has no split folders, so split must be one of {', '.join(SPLITS)}, not "
                            f"{self.split!r}{nearest(self.split, SPLITS)}")
        classes = _classes(root)
        dataset = _scan(root, "", classes, classes, lambda id_: hashed_split(id_, self.held_out) == split)
        if not len(dataset):
            raise UserError(f"no image of {self.root!r} falls into split {split!r} with held_out={self.held_out:g}; "
                            "add images, or create folders train/, validation/ and test/")
        return dataset


@dataclasses.dataclass(eq=False)
class ImageFolderDataset(FileDataset):
    """A compact list of files (1,000,000 paths of 20 characters take 32 MB). ``names`` are paths in class folders."""

    prefix: str  # of every id: "train/" or ""
    label_of: np.ndarray  # int32 [n]

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        label = self.label_of[index]
        return f"{self.prefix}{self.classes[label]}/{text_at(self.names, index)}", np.array([label], np.int32)


def _scan(root, prefix, folders, classes, in_split=lambda id_: True) -> ImageFolderDataset:
    """Lists the images of ``folders``; only one class's paths are Python objects at a time."""
    label_of = {name: label for label, name in enumerate(classes)}
    digest = hashlib.blake2b("\0".join((prefix, *classes)).encode(errors="surrogateescape"), digest_size=16)
    parents = (os.path.realpath(root), os.path.realpath(f"{root}/{prefix}"))
    names, labels = [], []
    for name in folders:
        images = sorted(_images(f"{root}/{prefix}{name}", parents))
        if not images:
            raise UserError(f"folder {f'{root}/{prefix}{name}'!r} has no images ({', '.join(sorted(EXTENSIONS))}); add "
                            "some or remove the folder")
        entries = [(os.fsencode(path), size) for path, size in images if in_split(f"{prefix}{name}/{path}")]
        digest.update(os.fsencode(f"\0\0{name}") + b"".join(b"\0%b\0%d" % entry for entry in entries))
        names.append(compact(path for path, _ in entries))
        labels.append(np.full(len(entries), label_of[name], np.int32))
    return ImageFolderDataset(
        classes=tuple(classes),
        multi_label=False,
        fingerprint=digest.hexdigest(),
        root=root,
        names=pa.concat_arrays(names),
        prefix=prefix,
        label_of=np.concatenate(labels),
    )


def _images(folder: str, parents: tuple[str, ...], below: str = "") -> Iterator[tuple[str, int]]:
    """(path relative to ``folder`` with forward slashes, size in bytes) of all images, in any order.

    ``parents`` are the real paths of the enclosing folders: a link back to one of them is not followed.
    """
    current = os.path.realpath(f"{folder}/{below}")
    if current in parents:
        return
    with os.scandir(current) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(folder, (*parents, current), f"{below}{entry.name}/")
            elif is_image(entry.name):
                try:
                    size = entry.stat().st_size
                except OSError:  # a broken link is listed, so that it is an error when read and not silently lost
                    size = -1
                yield below + entry.name, size


def _folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _has_only_folders(folder: str) -> bool:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    images = any(is_image(e.name) and not e.is_dir() for e in visible)
    return not images and any(entry.is_dir() for entry in visible)


def _classes(folder: str) -> list[str]:
    """The sorted names of the class folders. Raises: UserError when there are none."""
    names = _folders(folder)
    if not names:
        problem = "is empty" if not os.listdir(folder) else "has files but no folders"
        raise UserError(f"{folder!r} {problem}; expected one folder per class: {folder}/cat/1.jpg")
    return names


def _find_split(split: str, folders: list[str]) -> str | None:
    """The folder of a split: the one of this name, else of one of its aliases."""
    aliases = SPLITS.get(standard_split(split), ())
    return next((name for name in (split, *aliases) if name in folders), None)
