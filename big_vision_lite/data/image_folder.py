"""Images in plain folders, one folder a class: ``root/train/cat/1.jpg`` or ``root/cat/1.jpg``."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator

import numpy as np

from big_vision_lite.data.files import Strings, read_file
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import UserError, nearest

EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "heic"))

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""The names under which a split and its folder may go."""


@dataclasses.dataclass(frozen=True)
class ImageFolder(Source):
    """Images in ``root/split/class/`` or ``root/class/``, and in folders below; hidden files are ignored.

    A class's id is its place among the sorted names of the train split's folders, also for other splits. The
    id of an example is its path relative to ``root``.

    Without split folders, each image falls into a split by a hash of that path: adding, removing or
    reordering other files never moves it. ``root`` counts as having split folders when a folder with the
    name of a split holds folders and no images.
    """

    root: str = ""
    """Folder; ``~`` is allowed."""
    split: str = "train"
    """train, validation (or val, valid), test, or the name of any other folder beside train."""
    held_out: float = 0.1
    """Without split folders: the share of images for validation, and again for test; below 0.5."""

    def __post_init__(self):
        if not 0 <= self.held_out < 0.5:
            raise UserError(f"ImageFolder.held_out is {self.held_out!r}; expected 0 <= held_out < 0.5")

    def open(self) -> ImageFolderRecords:
        """Lists the folder; no image is read.

        Raises:
          UserError: no such folder or split, no classes, a class without images, or a class unknown to train.
        """
        root = os.path.expanduser(self.root)
        if not os.path.isdir(root):
            raise UserError(f"ImageFolder.root is {self.root!r}, not a folder; expected root/class/*.jpg")
        folders = _folders(root)
        names = {alias for aliases in SPLITS.values() for alias in aliases}
        if any(_holds_folders_only(os.path.join(root, name)) for name in names.intersection(folders)):
            return self._open_split(root, folders)
        return self._open_flat(root)

    def _open_split(self, root: str, folders: list[str]) -> ImageFolderRecords:
        split = _find_split(self.split, folders)
        if split is None:
            raise UserError(f"{self.root!r} has no split {self.split!r}{nearest(self.split, folders)}")
        train = _find_split("train", folders)
        if train is None:
            raise UserError(
                f"{self.root!r} has no folder 'train', only {', '.join(folders)}; its folders give classes "
                f"their ids: add it, with one folder for each class, which may be empty"
            )
        classes = _classes(os.path.join(root, train))
        here = _classes(os.path.join(root, split))
        if unknown := sorted(set(here) - set(classes)):
            raise UserError(
                f"class {unknown[0]!r} is in {os.path.join(root, split)!r} and not in train"
                + (f" ({len(unknown)} such classes)" if len(unknown) > 1 else "")
                + nearest(unknown[0], classes)
            )
        return _scan(root, f"{split}/", here, classes)

    def _open_flat(self, root: str) -> ImageFolderRecords:
        split = next((name for name, aliases in SPLITS.items() if self.split in aliases), None)
        if split is None:
            raise UserError(
                f"{self.root!r} has no split folders, so that split is one of {', '.join(SPLITS)}, not "
                f"{self.split!r}{nearest(self.split, SPLITS)}"
            )
        classes = _classes(root)
        records = _scan(root, "", classes, classes, lambda id_: hashed_split(id_, self.held_out) == split)
        if not len(records):
            raise UserError(
                f"no image of {self.root!r} falls into split {split!r} at held_out={self.held_out:g}; add "
                f"images, or make folders train/, validation/ and test/ yourself"
            )
        return records


@dataclasses.dataclass(eq=False)
class ImageFolderRecords(Records):
    """The list of files, compact: 1,000,000 paths of 20 characters take 32 MB."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    root: str
    prefix: str  # of every id, before the class: "train/" or ""
    paths: Strings  # below the classes' folders
    label_of: np.ndarray  # int32 [n]

    def __len__(self) -> int:
        return len(self.label_of)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        label = self.label_of[index]
        return f"{self.prefix}{self.classes[label]}/{self.paths.at(index)}", np.array([label], np.int32)

    def __getitem__(self, index: int) -> Example:
        id_, labels = self.labels(index)
        return {"id": id_, "image": read_file(f"{self.root}/{id_}", id_), "labels": labels}


def _scan(root, prefix, folders, classes, keep=lambda id_: True) -> ImageFolderRecords:
    """List the images of ``folders``, class by class: only one class's paths are Python objects at a time."""
    id_of = {name: label for label, name in enumerate(classes)}
    digest = hashlib.blake2b("\0".join((prefix, *classes)).encode(errors="surrogateescape"), digest_size=16)
    above = (os.path.realpath(root), os.path.realpath(f"{root}/{prefix}"))
    paths, ends, labels, total = [], [], [], 0
    for name in folders:
        found = sorted(_images(f"{root}/{prefix}{name}", above))
        if not found:
            raise UserError(
                f"folder {f'{root}/{prefix}{name}'!r} holds no images ({', '.join(sorted(EXTENSIONS))}); "
                f"add some or remove the folder"
            )
        kept = [(os.fsencode(path), size) for path, size in found if keep(f"{prefix}{name}/{path}")]
        digest.update(os.fsencode(f"\0\0{name}") + b"".join(b"\0%b\0%d" % entry for entry in kept))
        paths.append(b"".join(path for path, _ in kept))
        ends.append(total + np.cumsum([len(path) for path, _ in kept], dtype=np.int64))
        total += len(paths[-1])
        labels.append(np.full(len(kept), id_of[name], np.int32))
    return ImageFolderRecords(
        classes=tuple(classes),
        multi_label=False,
        fingerprint=digest.hexdigest(),
        root=root,
        prefix=prefix,
        paths=Strings(np.concatenate(ends), b"".join(paths)),
        label_of=np.concatenate(labels),
    )


def _images(folder: str, above: tuple[str, ...], below: str = "") -> Iterator[tuple[str, int]]:
    """(path relative to ``folder`` with forward slashes, size in bytes) of all images, in no order.

    ``above`` are the real paths of the folders on the way here: a link back to one of them is not followed.
    """
    here = os.path.realpath(f"{folder}/{below}")
    if here in above:
        return
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(folder, (*above, here), f"{below}{entry.name}/")
            elif entry.name.rpartition(".")[2].lower() in EXTENSIONS:
                try:
                    size = entry.stat().st_size
                except OSError:  # a broken link: listed, so that reading it is an error and not a silent loss
                    size = -1
                yield below + entry.name, size


def _folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _holds_folders_only(folder: str) -> bool:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    images = any(e.name.rpartition(".")[2].lower() in EXTENSIONS and not e.is_dir() for e in visible)
    return not images and any(entry.is_dir() for entry in visible)


def _classes(folder: str) -> list[str]:
    """The sorted names of the class folders.

    Raises:
      UserError: there are none.
    """
    names = _folders(folder)
    if not names:
        found = "is empty" if not os.listdir(folder) else "holds files and no folders"
        raise UserError(f"{folder!r} {found}; expected one folder a class: {folder}/cat/1.jpg")
    return names


def _find_split(split: str, folders: list[str]) -> str | None:
    """The folder of a split: the one of exactly this name, or else of another name for the same split."""
    aliases = next((aliases for aliases in SPLITS.values() if split in aliases), ())
    return next((name for name in (split, *aliases) if name in folders), None)


def hashed_split(id_: str, held_out: float) -> str:
    fraction = int.from_bytes(hashlib.blake2b(os.fsencode(id_), digest_size=8).digest()) / 2**64
    return "test" if fraction < held_out else "validation" if fraction < 2 * held_out else "train"
