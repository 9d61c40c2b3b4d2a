"""Images in plain folders, one folder per class: ``root/train/cat/1.jpg`` or ``root/cat/1.jpg``."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import PIECE_ROWS, Columns, joined_ids, with_keys
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.files import (
    EXTENSIONS,
    FileDataset,
    Fingerprint,
    compact,
    files_identity,
    is_folder,
    is_image,
    scan,
    text_at,
)
from big_vision_lite.data.sources.splits import SPLITS, check_held_out, hashed_split, spellings, standard_split
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
    nested: bool = False
    """Accept class folders without images of their own, such as ``root/class/video/frame.jpg``; otherwise these are
    taken for a folder too many."""
    fingerprint: Fingerprint = "mtime"
    """Whether the data counts as changed by the sizes and modification times of its files or by their content, which
    is read once for that."""

    precedence: ClassVar[int] = -1  # any folder will do

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"root": str(path)} if path.is_dir() else None

    def __post_init__(self):
        check_held_out(self)

    def open(self) -> ImageFolderDataset:
        """Lists the folder; no image is read.

        Raises:
          UserError: no such folder or split, no classes, a class without images, a class that train lacks, or class
            folders that hold only folders.
        """
        root = os.path.expanduser(self.root)
        if not os.path.isdir(root):
            raise UserError(f"ImageFolder.root is {self.root!r}, not a folder; expected root/class/*.jpg")
        folders = _folders(root)
        if any(_has_only_folders(os.path.join(root, name)) for name in folders if standard_split(name)):
            return self._open_split(root, folders)
        return self._open_flat(root)

    def _open_split(self, root: str, folders: list[str]) -> ImageFolderDataset:
        split = next((name for name in spellings(self.split) if name in folders), None)
        if split is None:
            raise UserError(f"{self.root!r} has no split {self.split!r}{nearest(self.split, folders)}")
        train = next((name for name in spellings("train") if name in folders), None)
        if train is None:
            raise UserError(f"{self.root!r} has no folder 'train', only {', '.join(folders)}; add it, with one folder "
                            "per class, which may be empty: it defines the class ids")
        classes = _classes(os.path.join(root, train))
        split_classes = _classes(os.path.join(root, split))
        if unknown := sorted(set(split_classes) - set(classes)):
            raise UserError(f"class {unknown[0]!r} is in {os.path.join(root, split)!r} but not in train"
                            + (f" ({len(unknown)} such classes)" if len(unknown) > 1 else "")
                            + nearest(unknown[0], classes))
        return _scan(self, f"{split}/", split_classes, classes)

    def _open_flat(self, root: str) -> ImageFolderDataset:
        split = standard_split(self.split)
        if split is None:
            raise UserError(f"{self.root!r} has no split folders, so split must be one of {', '.join(SPLITS)}, not "
                            f"{self.split!r}{nearest(self.split, SPLITS)}")
        classes = _classes(root)
        if all(map(standard_split, classes)):
            raise UserError(f"the folders of {self.root!r}, {', '.join(classes)}, are named like splits but have "
                            f"images instead of folders; expected {classes[0]}/CLASS/*.jpg in them")
        dataset = _scan(self, "", classes, classes, lambda id_: hashed_split(id_, self.held_out) == split)
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

    def column_pieces(self) -> Iterator[Columns]:
        classes = compact(self.classes)
        for start in range(0, len(self), PIECE_ROWS):
            labels = self.label_of[start : start + PIECE_ROWS]
            names = self.names.slice(start, len(labels))
            ids = joined_ids(self.prefix, classes.take(pa.array(labels)), "/", names)
            yield with_keys(ids, Ragged(np.arange(1, len(labels) + 1), labels))


def _scan(source: ImageFolder, prefix: str, folders: list[str], classes: list[str],
          in_split: Callable[[str], bool] = lambda id_: True) -> ImageFolderDataset:
    """Lists the images of ``folders``; only one class's paths are Python objects at a time."""
    root = os.path.expanduser(source.root)
    label_of = {name: label for label, name in enumerate(classes)}
    digest = hashlib.blake2b("\0".join((prefix, *classes)).encode(errors="surrogateescape"), digest_size=8)
    parents = (os.path.realpath(root), os.path.realpath(f"{root}/{prefix}"))
    names, labels, stats, ignored, nested = [], [], [], Counter(), True
    for name in folders:
        images = sorted(scan(f"{root}/{prefix}{name}", parents=parents, ignored=ignored))
        if not images:
            raise UserError(f"folder {f'{root}/{prefix}{name}'!r} has no images ({', '.join(sorted(EXTENSIONS))}); add "
                            "some or remove the folder")
        nested = nested and all("/" in path for path, *_ in images)
        images = [image for image in images if in_split(f"{prefix}{name}/{image[0]}")]
        paths = [os.fsencode(path) for path, *_ in images]
        digest.update(b"\0".join((b"\0", os.fsencode(name), *paths)))
        names.append(compact(paths))
        labels.append(np.full(len(images), label_of[name], np.int32))
        stats.append(np.array([image[1:] for image in images], np.int64).reshape(-1, 2))
    if nested and not source.nested:
        first = f"{root}/{prefix}{folders[0]}"
        raise UserError(f"the folders of classes in {f'{root}/{prefix}'!r} have no images themselves but only folders, "
                        f"as {first!r} has {', '.join(_folders(first)[:3])}; if these are the splits or classes, give "
                        f"their folder as root; if {folders[0]!r} is a class, set ImageFolder.nested to true")
    dataset = ImageFolderDataset(
        classes=tuple(classes),
        multi_label=False,
        fingerprint="",
        root=root,
        names=pa.concat_arrays(names),
        prefix=prefix,
        label_of=np.concatenate(labels),
    )
    ids = (dataset.labels(index)[0] for index in range(len(dataset)))
    identity = files_identity(root, ids, np.concatenate(stats), source.fingerprint)
    dataset.fingerprint = f"folder-{digest.hexdigest()}-{identity}"
    if ignored:
        kinds = ", ".join(f"{count:,} {suffix!r}" for suffix, count in ignored.most_common(5))
        dataset.notes = (f"{sum(ignored.values()):,} files in {f'{root}/{prefix}'!r} are ignored, because they have "
                         f"no extension of an image: {kinds}",)
    return dataset


def _folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not entry.name.startswith("."))


def _has_only_folders(folder: str) -> bool:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    images = any(is_image(e.name) and not is_folder(e) for e in visible)
    return not images and any(is_folder(entry) for entry in visible)


def _classes(folder: str) -> list[str]:
    """The sorted names of the class folders. Raises: UserError when there are none."""
    names = _folders(folder)
    if not names:
        problem = "is empty" if not os.listdir(folder) else "has files but no folders"
        raise UserError(f"{folder!r} {problem}; expected one folder per class: {folder}/cat/1.jpg")
    return names
