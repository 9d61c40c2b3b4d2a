"""Semantic segmentation data in plain folders: images in one, class masks in another."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.masks import VOID, check_mask_size, decode_mask
from big_vision_lite.data.source import Example, Source
from big_vision_lite.data.sources.files import (
    FileDataset,
    Fingerprint,
    by_stem,
    check_classes,
    check_files,
    compact,
    in_threads,
    read_file,
    read_lines,
    scan,
    text_at,
)
from big_vision_lite.data.sources.splits import SPLITS, check_held_out, hashed_split, spellings, standard_split
from big_vision_lite.errors import BadImageError, UserError, nearest, reading, same_in_unicode
from big_vision_lite.system.cache import cached_array, cached_path
from big_vision_lite.system.parse import parse_json

MAX_CLASSES = 254
MAX_VALUE = (1 << 16) - 1
SAMPLE = 32
"""Masks of a split that are read when it is opened, to see whether they fit the classes."""
CLASS_FILES = ("classes.txt", "classes.json")
"""Files in ``root`` that may list the classes."""
BACKGROUND = frozenset(("background", "__background__", "_background_"))
NO_CLASS = frozenset(("void", "ignore", "ignored", "unlabeled", "unlabelled", "undefined"))
"""Names in a file of classes that may stand for void."""
_UNKNOWN = -1
_GIVE_VALUES = ("give each class its value, in a line '255 name' of classes.txt or in MaskFolder.values, and set "
                "MaskFolder.void to () if 255 is one")


@dataclasses.dataclass(frozen=True)
class MaskFolder(Source):
    """Images in ``root/images``, each with a mask of the same name (``.png`` or ``.PNG``) in ``root/masks``.

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
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`, for images and masks."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"root": str(path)} if (path / "images").is_dir() and (path / "masks").is_dir() else None

    def __post_init__(self):
        check_held_out(self)
        for name, valid in (("others", ("raise", "background", "void")), ("unpaired", ("raise", "skip"))):
            if getattr(self, name) not in valid:
                raise UserError(f"MaskFolder.{name} is {getattr(self, name)!r}; expected {' or '.join(valid)}")

    def open(self) -> MaskDataset:
        """Lists the folders and reads a sample of the masks; all of them only if nothing else defines the classes, or
        if the sample has none.

        Raises:
          UserError: no such folder or split, an image without a mask or vice versa, two files of one name, no usable
            classes, or masks that do not fit them.
        """
        root = Path(os.path.expanduser(self.root))
        image_folder, mask_folder, mask_of = self._pairs(root)
        classes, table = self._classes(root)
        notes = self._check_sample([f"{mask_folder}/{mask}" for mask in mask_of.values()], classes, table)
        content = repr((classes, table.tolist(), list(mask_of.items())))
        digest = hashlib.blake2b(content.encode(errors="surrogateescape"), digest_size=8)
        identities = [check_files(str(folder), ((name, str(folder)) for name in names), self.fingerprint)
                      for folder, names in ((image_folder, mask_of), (mask_folder, mask_of.values()))]
        dataset = MaskDataset(classes, True, "-".join(("masks", digest.hexdigest(), *identities)), str(image_folder),
                              compact(mask_of), str(mask_folder), compact(mask_of.values()), table)
        dataset.notes = notes
        return dataset

    def _pairs(self, root: Path) -> tuple[Path, Path, dict[str, str]]:
        """The folders, and the mask of each of the split's images. Raises: UserError."""
        folders = []
        for pattern in (self.images, self.masks):
            places = [pattern.replace("{split}", name) if "{split}" in pattern else f"{pattern}/{name}"
                      for name in spellings(self.split)]
            folders.append(next((root / place for place in places if (root / place).is_dir()), None))
        if all(folders):
            return *folders, self._matched(*folders)
        images, masks = (root / pattern.replace("{split}", self.split) for pattern in (self.images, self.masks))
        for folder in (images, masks):
            if not folder.is_dir():
                raise UserError(f"MaskFolder: there is no folder {str(folder)!r}; expected {self.images!r} and "
                                f"{self.masks!r} below root={self.root!r}")
        mask_of, split = self._matched(images, masks), standard_split(self.split)
        if self.split == "all":
            return images, masks, mask_of
        lists = [path for name in spellings(self.split)
                 for path in (root / f"{name}.txt", root / "splits" / f"{name}.txt") if path.is_file()]
        if lists:
            return images, masks, {name: mask_of[name] for name in _listed(lists[0], list(mask_of))}
        if split is None:
            raise UserError(f"{self.root!r} has no split {self.split!r}: no folder in {self.images!r} and no list "
                            f"{self.split}.txt{nearest(self.split, (*SPLITS, 'all'))}")
        selected = {name: mask for name, mask in mask_of.items() if hashed_split(name, self.held_out) == split}
        if not selected:
            raise UserError(f"no image of {self.root!r} falls into split {split!r} with held_out={self.held_out:g}; "
                            f"write a list {self.split}.txt or add images")
        return images, masks, selected

    def _matched(self, images: Path, masks: Path) -> dict[str, str]:
        """The mask of each image that has one, sorted, as paths in these folders. Raises: UserError."""
        image_of, mask_of = (by_stem((name for name, *_ in files), str(folder)) for folder, files in
                             ((images, scan(str(images))), (masks, scan(str(masks), _is_png))))
        if self.unpaired == "raise":
            for kind, other, folder, of_kind, of_other in (("image", "mask", masks, image_of, mask_of),
                                                           ("mask", "image", images, mask_of, image_of)):
                if stems := sorted(of_kind.keys() - of_other.keys()):
                    raise UserError(f"{kind} {stems[0]!r} has no {other} in {str(folder)!r} ({len(stems):,} such)"
                                    + (same_in_unicode(stems[0], of_other) or "; add it, or set unpaired='skip'"))
        matched = {image_of[stem]: mask_of[stem] for stem in mask_of.keys() & image_of.keys()}
        if not matched:
            raise UserError(f"{str(images)!r} and {str(masks)!r} have no image and mask with the same name; expected "
                            "images/1.jpg and masks/1.png")
        return dict(sorted(matched.items()))

    def _classes(self, root: Path) -> tuple[tuple[str, ...], np.ndarray]:
        """Class names, and a table from stored to class mask values, int16 ``[65536]``. Raises: UserError."""
        named = self._named_values(root)
        for value in (*(value for value, _ in named), *self.void, self.background or 0):
            if not 0 <= value <= MAX_VALUE:
                raise UserError(f"MaskFolder: {str(value)[:20]} is no value of a mask; expected 0 to {MAX_VALUE:,}")
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
        table = np.full(MAX_VALUE + 1, {"raise": _UNKNOWN, "background": 0, "void": VOID}[self.others], np.int16)
        for value, name in named:
            table[value] = classes.index(name) + 1
        table[list(self.void)] = VOID
        if self.background is not None:
            table[self.background] = 0
        return classes, table

    def _named_values(self, root: Path) -> list[tuple[int, str]]:
        """Values and their class names, without background and void. Raises: UserError."""
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
            entries = _read_classes(root / files[0], first)
            twice = [value for value, count in Counter(value for value, _ in entries).items() if count > 1]
            if twice:
                raise UserError(f"{root / files[0]}: the value {twice[0]} is there twice; expected each value once")
            return [(value, name) for value, name in entries
                    if not (value == self.background and name.lower() in BACKGROUND)
                    and not (value in self.void and name.lower() in NO_CLASS)]
        folder = root / self.masks.partition("{split}")[0]  # all masks, so that every split has the same classes
        values, _ = _values([f"{folder}/{name}" for name in sorted(name for name, *_ in scan(str(folder), _is_png))])
        named = [(v, str(v)) for v in values.tolist() if v != self.background and v not in self.void]
        if not named:
            raise UserError(f"MaskFolder: the masks in {str(folder)!r} have values {_abridged(values)}, which are all "
                            f"background or void: {_GIVE_VALUES}")
        return named

    def _check_sample(self, masks: list[str], classes: tuple[str, ...], table: np.ndarray) -> tuple[str, ...]:
        """Notes on the classes, as of a sample of the masks.

        Raises:
          UserError: two of the sample have the same value of no class (a single one is a bad image when it is read), or
            no mask at all has a class.
        """
        sample = np.unique(np.linspace(0, len(masks) - 1, min(SAMPLE, len(masks))).astype(int))
        values, counts = _values([masks[index] for index in sample], skip_bad=True)
        if (table[values[counts > 1]] == _UNKNOWN).any():
            raise UserError(f"MaskFolder: some masks of split {self.split!r} have values of no class: "
                            + _unknown(values, table))
        is_class = (table > 0) & (table != VOID)
        named = {int(value): f"{value} {classes[table[value] - 1]!r}" for value in np.flatnonzero(is_class)}
        if not is_class[values].any():
            values, _ = _values(masks, skip_bad=True)
            if len(values) and not is_class[values].any():
                raise UserError(f"MaskFolder: the masks of split {self.split!r} have values {_abridged(values)}, none "
                                f"of which is a class; classes are {_abridged([*named.values()])}: {_GIVE_VALUES}")
        absent = [name for value, name in named.items() if value not in values]
        return (f"classes in none of {len(sample):,} masks that were looked at: {_abridged(absent)}",) if absent else ()


@dataclasses.dataclass(eq=False)
class MaskDataset(FileDataset):
    """Images and masks of a split."""

    mask_folder: str
    mask_names: pa.LargeBinaryArray
    table: np.ndarray  # int16 [65536]: 0 background, c + 1 class c, 255 void, -1 unknown

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        id_ = text_at(self.names, index)
        image = read_file(f"{self.root}/{id_}", id_)
        stored = decode_mask(read_file(f"{self.mask_folder}/{text_at(self.mask_names, index)}", id_), id_)
        try:
            size = image_size(image)
        except DecodeError as error:
            raise BadImageError(id_, str(error)) from error
        check_mask_size(id_, stored, size)
        values = np.unique(stored)
        meant = self.table[values]
        if (meant == _UNKNOWN).any():
            raise BadImageError(id_, "its mask has values of no class: " + _unknown(values, self.table))
        present = np.unique(meant[(meant > 0) & (meant != VOID)]) - 1
        mask = self.table.astype(np.uint8)[stored]
        return {"id": id_, "image": image, "labels": present.astype(np.int32), "class_mask": mask}

    def _image_size(self, index: int) -> tuple[int, int]:
        id_ = text_at(self.names, index)
        try:
            return image_size(read_file(f"{self.root}/{id_}", id_))
        except (BadImageError, DecodeError):
            return 0, 0


def _unknown(values: np.ndarray, table: np.ndarray) -> str:
    unknown, known = values[table[values] == _UNKNOWN], np.flatnonzero(table != _UNKNOWN)
    return f"{_abridged(unknown)}; known are {_abridged(known)}: name them, or set MaskFolder.others"


def _abridged(values: Sequence[object] | np.ndarray) -> str:
    return ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png")


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


class _Category(msgspec.Struct):
    id: int
    name: str


def _read_classes(path: Path, first: int) -> list[tuple[int, str]]:
    """Values and class names from a file. Raises: UserError."""
    expected = "lines of names or of 'value name', in UTF-8, or JSON"
    lines = read_lines(path, "MaskFolder.class_file", expected)
    if path.suffix.lower() == ".json":
        return _parse_classes("\n".join(lines), path, first)
    numbered = [re.fullmatch(r"(\d+)\s*[:,\s]\s*(\S.*)", line) for line in lines]
    if all(numbered):
        with reading(path, f"expected {expected}", ValueError):  # more digits than Python converts
            return [(int(match[1]), match[2]) for match in numbered]
    return _counted(lines, first)


def _parse_classes(text: str, path: Path, first: int) -> list[tuple[int, str]]:
    """The same from JSON."""
    expected = "expected a list of names, {value: name} or COCO's categories"
    if text.startswith("{"):
        entries = parse_json(text, dict[str, msgspec.Raw], path, expected)
        if "categories" not in entries:
            with reading(path, expected, ValueError):
                return [(int(value), parse_json(bytes(name), str, path, expected)) for value, name in entries.items()]
        text = bytes(entries["categories"]).decode()
    if re.match(r"\[\s*\{", text):
        return [(entry.id, entry.name) for entry in parse_json(text, list[_Category], path, expected)]
    return _counted(parse_json(text, list[str], path, expected), first)


def _counted(names: list[str], first: int) -> list[tuple[int, str]]:
    return list(enumerate(names, 0 if names and names[0].lower() in BACKGROUND else first))


def _values(masks: Sequence[str], skip_bad: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """int64: all values in these files, ascending, and in how many of them each is; cached.

    Raises:
      BadImageError: a mask cannot be decoded, unless these are to be skipped.
    """
    def values_in(path: str) -> np.ndarray:
        try:
            return np.unique(decode_mask(read_file(path, path), path)).astype(np.int64)
        except BadImageError:
            if not skip_bad:
                raise
            return np.empty(0, np.int64)

    def count() -> np.ndarray:
        return np.stack(np.unique(np.concatenate(in_threads(values_in, masks)), return_counts=True))

    stats = [(path, status.st_size, status.st_mtime_ns) for path in masks for status in [os.stat(path)]]
    digest = hashlib.blake2b(repr((skip_bad, stats)).encode(errors="surrogateescape"), digest_size=12).hexdigest()
    return tuple(cached_array(cached_path("mask_values", f"{digest}-2.npy"), count))
