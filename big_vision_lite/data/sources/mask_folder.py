"""Semantic segmentation data in plain folders: images in one, class masks in another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.masks import VOID, check_mask_size, decode_mask
from big_vision_lite.data.source import Example, Source
from big_vision_lite.data.sources.files import (
    EXTENSIONS,
    FileDataset,
    check_classes,
    compact,
    read_file,
    read_lines,
    text_at,
)
from big_vision_lite.data.sources.splits import SPLITS, check_held_out, hashed_split, standard_split
from big_vision_lite.errors import BadImageError, UserError, nearest
from big_vision_lite.system.cache import cache_dir, cached_file

MAX_CLASSES = 254
CLASS_FILES = ("classes.txt", "classes.json")
"""Files in ``root`` that may list the classes."""
BACKGROUND = frozenset(("background", "__background__", "_background_"))
_UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class MaskFolder(Source):
    """Images in ``root/images``, each with a mask of the same name (``.png``) in ``root/masks``.

    A mask has its image's size and is grey or has a palette (as VOC's, whose colours do not matter); its values stand
    for classes. Splits are given by folders (``images/train``, ``masks/train``), else by lists (``train.txt`` in
    ``root`` or ``root/splits``, with one image per line), else by a hash of the name. The id of an example is the path
    of its image relative to ``images``; its labels are the classes in its mask.
    """

    root: str = ""
    """Folder; ``~`` is allowed."""
    split: str = "train"
    """train, validation (or val, valid), test, or the name of any other folder or list; ``all`` for all images."""
    images: str = "images"
    """Folder of the images, relative to ``root``; may contain ``{split}``."""
    masks: str = "masks"
    """Folder of the masks, likewise."""
    classes: tuple[str, ...] | None = None
    """Class names. None: from ``class_file``; without one, each value in the masks of all splits is a class named after
    it, for which all masks are read once."""
    values: tuple[int, ...] | None = None
    """The mask value of each of ``classes``; repeat a class that has several values. None: 1, 2, ..., or 0, 1, ... if
    ``background`` is None."""
    class_file: str | None = None
    """File of class names, relative to ``root``: text with ``name`` or ``value name`` per line, or JSON with a list of
    names, {value: name}, or COCO's categories. None: classes.txt or classes.json, if there is one."""
    background: int | None = 0
    """The value of pixels without a class; None if every pixel has one."""
    void: tuple[int, ...] = (255,)
    """Values of ignored pixels."""
    others: Literal["raise", "background", "void"] = "raise"
    """How to treat any other value."""
    unpaired: Literal["raise", "skip"] = "raise"
    """Whether images without a mask and masks without an image are errors or left out."""
    held_out: float = 0.1
    """If images are split by a hash: the fraction for validation, and again for test; below 0.5."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"root": str(path)} if (path / "images").is_dir() and (path / "masks").is_dir() else None

    def __post_init__(self):
        check_held_out(self)
        for name, valid in (("others", ("raise", "background", "void")), ("unpaired", ("raise", "skip"))):
            if getattr(self, name) not in valid:
                raise UserError(f"MaskFolder.{name} is {getattr(self, name)!r}; expected {' or '.join(valid)}")

    def open(self) -> MaskDataset:
        """Lists the folders; no image is read, and masks only if nothing else defines the classes.

        Raises:
          UserError: no such folder or split, an image without a mask or vice versa, or no usable classes.
        """
        root = Path(self.root).expanduser()
        image_folder, mask_folder, names = self._pairs(root)
        paths = [(image_folder, name, mask_folder / f"{name.rpartition('.')[0]}.png") for name in names]
        classes, table = self._classes(root)
        digest = hashlib.blake2b(repr((classes, table.tolist())).encode(), digest_size=8)
        for folder, name, mask in paths:
            sizes = (folder / name).stat().st_size, mask.stat().st_size
            digest.update(repr((name, sizes)).encode(errors="surrogateescape"))
        return MaskDataset(classes, True, f"masks-{digest.hexdigest()}", str(image_folder), compact(names),
                           str(mask_folder), table)

    def _pairs(self, root: Path) -> tuple[Path, Path, list[str]]:
        """The folders and the split's image names. Raises: UserError."""
        split = standard_split(self.split)
        splits = [self.split, *(a for a in SPLITS.get(split, ()) if a != self.split)]
        by_name = "{split}" in self.images or "{split}" in self.masks
        folders = [(root / self.images.replace("{split}", s), root / self.masks.replace("{split}", s)) for s in splits]
        below = [(images / s, masks / s) for (images, masks), s in zip(folders, splits, strict=True)]
        for images, masks in folders if by_name else below:
            if images.is_dir() and masks.is_dir():
                return images, masks, self._matched(images, masks)
        images, masks = folders[0]
        if not (images.is_dir() and masks.is_dir()):
            missing = images if not images.is_dir() else masks
            raise UserError(f"MaskFolder: there is no folder {str(missing)!r}; expected {self.images!r} and "
                            f"{self.masks!r} below root={self.root!r}")
        names = self._matched(images, masks)
        if self.split == "all":
            return images, masks, names
        lists = [path for s in splits for path in (root / f"{s}.txt", root / "splits" / f"{s}.txt") if path.is_file()]
        if lists:
            return images, masks, _listed(lists[0], names)
        if split is None:
            raise UserError(f"{self.root!r} has no split {self.split!r}: no folder in {self.images!r} and no list "
                            f"{self.split}.txt{nearest(self.split, (*SPLITS, 'all'))}")
        selected = [name for name in names if hashed_split(name, self.held_out) == split]
        if not selected:
            raise UserError(f"no image of {self.root!r} falls into split {split!r} with held_out={self.held_out:g}; "
                            f"write a list {self.split}.txt or add images")
        return images, masks, selected

    def _matched(self, images: Path, masks: Path) -> list[str]:
        """Sorted paths of the images that have a mask. Raises: UserError for unpaired files."""
        image_of = {name.rpartition(".")[0]: name for name in _files(images, EXTENSIONS)}
        mask_stems = {name.rpartition(".")[0] for name in _files(masks, {"png"})}
        if self.unpaired == "raise":
            for kind, other, folder, stems in (("image", "mask", masks, sorted(set(image_of) - mask_stems)),
                                               ("mask", "image", images, sorted(mask_stems - set(image_of)))):
                if stems:
                    raise UserError(f"{kind} {stems[0]!r} has no {other} in {str(folder)!r} ({len(stems):,} such); add "
                                    "it, or set unpaired='skip'")
        names = sorted(image_of[stem] for stem in mask_stems & set(image_of))
        if not names:
            raise UserError(f"{str(images)!r} and {str(masks)!r} have no image and mask with the same name; expected "
                            "images/1.jpg and masks/1.png")
        return names

    def _classes(self, root: Path) -> tuple[tuple[str, ...], np.ndarray]:
        """Class names, and a table from stored to class mask values, int16 ``[65536]``. Raises: UserError."""
        named = self._named_values(root)
        for value, name in named:
            if value in self.void or value == self.background:
                field = "void" if value in self.void else "background"
                raise UserError(f"MaskFolder: the value {value} is class {name!r} and also {field}; change {field!r}")
        classes = tuple(dict.fromkeys(name for _, name in named))
        check_classes(classes, "MaskFolder")
        if len(classes) > MAX_CLASSES:
            raise UserError(f"MaskFolder has {len(classes)} classes; expected at most {MAX_CLASSES}: merge some")
        if len({value for value, _ in named}) < len(named):
            raise UserError("MaskFolder: one value stands for two classes; expected each value once")
        table = np.full(1 << 16, {"raise": _UNKNOWN, "background": 0, "void": VOID}[self.others], np.int16)
        for value, name in named:
            table[value] = classes.index(name) + 1
        table[list(self.void)] = VOID
        if self.background is not None:
            table[self.background] = 0
        return classes, table

    def _named_values(self, root: Path) -> list[tuple[int, str]]:
        """Values and their class names, without background and void."""
        first = 0 if self.background is None else 1
        if self.classes is not None:
            values = self.values or range(first, first + len(self.classes))
            if len(values) != len(self.classes):
                raise UserError(f"MaskFolder.values has {len(values)} numbers and classes {len(self.classes)} names; "
                                "expected one value per name")
            if self.values is None:
                check_classes(self.classes, "MaskFolder.classes")
            return list(zip(values, self.classes, strict=True))
        files = [self.class_file] if self.class_file else [name for name in CLASS_FILES if (root / name).is_file()]
        if files:
            return [(value, name) for value, name in _read_classes(root / files[0], first)
                    if value not in self.void and not (value == self.background and name.lower() in BACKGROUND)]
        all_masks = root / self.masks.partition("{split}")[0]  # so that every split has the same classes
        return [(v, str(v)) for v in _values(all_masks) if v != self.background and v not in self.void]


@dataclasses.dataclass(eq=False)
class MaskDataset(FileDataset):
    """Images and masks of a split."""

    mask_folder: str
    table: np.ndarray  # int16 [65536]: 0 background, c + 1 class c, 255 void, -1 unknown

    def __getitem__(self, index: int) -> Example:
        id_ = text_at(self.names, range(len(self))[index])
        image = read_file(f"{self.root}/{id_}", id_)
        stored = decode_mask(read_file(f"{self.mask_folder}/{id_.rpartition('.')[0]}.png", id_), id_)
        try:
            size = image_size(image)
        except DecodeError as error:
            raise BadImageError(id_, str(error)) from error
        check_mask_size(id_, stored, size)
        mask = self.table[stored]
        if mask.min() == _UNKNOWN:
            unknown = np.unique(stored[mask == _UNKNOWN]).tolist()
            known = np.flatnonzero(self.table != _UNKNOWN).tolist()
            raise BadImageError(id_, f"its mask has values of no class: {_abridged(unknown)}; known are "
                                f"{_abridged(known)}: name them, or set MaskFolder.others")
        mask = mask.astype(np.uint8)
        present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:VOID])
        return {"id": id_, "image": image, "labels": present.astype(np.int32), "class_mask": mask}

    def _image_size(self, index: int) -> tuple[int, int]:
        id_ = text_at(self.names, index)
        try:
            return image_size(read_file(f"{self.root}/{id_}", id_))
        except (BadImageError, DecodeError):
            return 0, 0


def _abridged(values: list[int]) -> str:
    return ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")


def _files(folder: Path, extensions: frozenset[str] | set[str]) -> list[str]:
    """Relative paths of files with one of these extensions, with forward slashes."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*")
            if path.suffix[1:].lower() in extensions and path.is_file()]


def _listed(path: Path, names: list[str]) -> list[str]:
    """The images in a list, which may omit the extension, in its order. Raises: UserError."""
    name_of = {name: name for name in names} | {name.rpartition(".")[0]: name for name in names}
    lines = read_lines(path, "the list of images", "one image per line, in UTF-8")
    for line in lines:
        if line not in name_of:
            raise UserError(f"{path} lists {line!r}, which is not an image with a mask{nearest(line, name_of)}")
    listed = list(dict.fromkeys(name_of[line] for line in lines))
    if len(listed) < len(lines) or not lines:
        raise UserError(f"{path} lists {'an image twice' if lines else 'no image'}; expected each image once")
    return listed


def _read_classes(path: Path, first: int) -> list[tuple[int, str]]:
    """Values and class names from a file. Raises: UserError."""
    lines = read_lines(path, "MaskFolder.class_file", "lines of names or of 'value name', in UTF-8, or JSON")
    if path.suffix == ".json":
        try:
            entries = json.loads("\n".join(lines))
            entries = entries.get("categories", entries) if isinstance(entries, dict) else entries
            if isinstance(entries, dict):
                return [(int(value), str(name)) for value, name in entries.items()]
            if isinstance(entries[0], dict):
                return [(int(entry["id"]), str(entry["name"])) for entry in entries]
            lines = [str(name) for name in entries]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(f"{path} is not a list of classes ({error}); expected a list of names, {{value: name}} or "
                            "COCO's categories") from None
    else:
        numbered = [re.fullmatch(r"(\d+)\s*[:,\s]\s*(\S.*)", line) for line in lines]
        if all(numbered):
            return [(int(match[1]), match[2]) for match in numbered]
    return list(enumerate(lines, 0 if lines[0].lower() in BACKGROUND else first))


def _values(folder: Path) -> list[int]:
    """All values in the masks of a folder, ascending; cached."""
    names = sorted(_files(folder, {"png"}))
    stats = [(name, (folder / name).stat().st_size, (folder / name).stat().st_mtime_ns) for name in names]
    digest = hashlib.blake2b(repr(stats).encode(errors="surrogateescape"), digest_size=12).hexdigest()
    path = cache_dir() / "mask_values" / f"{digest}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False).tolist()
    seen = np.zeros(1 << 16, np.bool_)
    for name in names:
        seen[np.unique(decode_mask(read_file(str(folder / name), name), name))] = True
    with cached_file(path) as temporary:
        np.save(temporary, np.flatnonzero(seen))
    return np.flatnonzero(seen).tolist()
