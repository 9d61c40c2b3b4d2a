"""Images in one folder and masks of their classes in another: the plainest data for semantic segmentation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np

from big_vision_lite.data.cache import cache_dir, kept
from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.files import Strings, check_classes, read_file
from big_vision_lite.data.image_folder import EXTENSIONS, SPLITS, hashed_split
from big_vision_lite.data.joint_transforms import VOID, check_mask_size, decode_mask
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import BadImageError, UserError, nearest

MOST_CLASSES = 254
CLASS_FILES = ("classes.txt", "classes.json")
"""Where names of classes are looked for, in ``root``."""
BACKGROUND = frozenset(("background", "__background__", "_background_"))
_UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class MaskFolder(Source):
    """Images below ``root/images`` with a mask of the same name (``.png``) below ``root/masks``.

    A mask is of its image's size, grey or with a palette (as VOC's, whose colours do not matter); its values name
    classes. Which images belong to a split is said by folders of its name (``images/train``, ``masks/train``), else by
    a list ``train.txt`` in ``root`` or ``root/splits``, one image a line; where there are neither, by a hash of the
    name. The id of an example is the path of its image below ``images``; its labels are the classes in its mask.
    """

    root: str = ""
    """Folder; ``~`` is allowed."""
    split: str = "train"
    """train, validation (or val, valid), test, or what folders and lists there are; ``all`` for everything."""
    images: str = "images"
    """Folder of the images below ``root``; ``{split}`` in it stands for the split."""
    masks: str = "masks"
    """Folder of the masks, likewise."""
    classes: tuple[str, ...] | None = None
    """Names of the classes. None: from ``class_file``; without one, the values in the masks of all splits are the
    names, and all masks are read for it once."""
    values: tuple[int, ...] | None = None
    """The value in masks of each of ``classes``; a class of several values is named several times. None: 1, 2, ..., or
    0, 1, ... where ``background`` is None."""
    class_file: str | None = None
    """Names of the classes, path below ``root``: a text file with a name or ``value name`` on each line, or json with a
    list of names, {value: name}, or COCO's categories. None: classes.txt or classes.json, if there is one."""
    background: int | None = 0
    """The value of pixels of no class; None when every pixel has a class."""
    void: tuple[int, ...] = (255,)
    """Values of pixels that count for nothing."""
    others: Literal["raise", "background", "void"] = "raise"
    """What pixels of any other value are."""
    unpaired: Literal["raise", "skip"] = "raise"
    """An image without a mask, or a mask without an image, is an error; or both are left out."""
    held_out: float = 0.1
    """Where images are split by a hash: the share for validation, and again for test; below 0.5."""

    def __post_init__(self):
        if not 0 <= self.held_out < 0.5:
            raise UserError(f"MaskFolder.held_out is {self.held_out!r}; expected 0 <= held_out < 0.5")
        for name, valid in (("others", ("raise", "background", "void")), ("unpaired", ("raise", "skip"))):
            if getattr(self, name) not in valid:
                raise UserError(f"MaskFolder.{name} is {getattr(self, name)!r}; expected {' or '.join(valid)}")

    def open(self) -> MaskRecords:
        """Lists the folders; no image is read, and masks only when nothing else names the classes.

        Raises:
          UserError: no such folder or split, an image without a mask or the reverse, or no usable classes.
        """
        root = Path(self.root).expanduser()
        image_folder, mask_folder, names = self._pairs(root)
        paths = [(image_folder, name, mask_folder / f"{name.rpartition('.')[0]}.png") for name in names]
        classes, table = self._classes(root)
        digest = hashlib.blake2b(repr((classes, table.tolist())).encode(), digest_size=8)
        for folder, name, mask in paths:
            sizes = (folder / name).stat().st_size, mask.stat().st_size
            digest.update(repr((name, sizes)).encode(errors="surrogateescape"))
        return MaskRecords(classes, True, f"masks-{digest.hexdigest()}", str(image_folder), str(mask_folder),
                           Strings.of(names), table)

    def _pairs(self, root: Path) -> tuple[Path, Path, list[str]]:
        """The folders, and the names of the split's images. Raises: UserError."""
        aliases = next((a for a in SPLITS.values() if self.split in a), ())
        splits = [self.split, *(a for a in aliases if a != self.split)]
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
        every = self._matched(images, masks)
        if self.split == "all":
            return images, masks, every
        lists = [path for s in splits for path in (root / f"{s}.txt", root / "splits" / f"{s}.txt") if path.is_file()]
        if lists:
            return images, masks, _listed(lists[0], every)
        split = next((name for name, known in SPLITS.items() if self.split in known), None)
        if split is None:
            raise UserError(f"{self.root!r} has no split {self.split!r}, neither a folder of {self.images!r} nor a "
                            f"list {self.split}.txt{nearest(self.split, (*SPLITS, 'all'))}")
        chosen = [name for name in every if hashed_split(name, self.held_out) == split]
        if not chosen:
            raise UserError(f"no image of {self.root!r} falls into split {split!r} at held_out={self.held_out:g}; "
                            f"write a list {self.split}.txt or add images")
        return images, masks, chosen

    def _matched(self, images: Path, masks: Path) -> list[str]:
        """The images that have a mask, sorted, with subfolders. Raises: UserError when others are there too."""
        pictures = {name.rpartition(".")[0]: name for name in _files(images, EXTENSIONS)}
        drawn = {name.rpartition(".")[0] for name in _files(masks, {"png"})}
        if self.unpaired == "raise":
            for what, other, folder, alone in (("image", "mask", masks, sorted(set(pictures) - drawn)),
                                               ("mask", "image", images, sorted(drawn - set(pictures)))):
                if alone:
                    raise UserError(f"{what} {alone[0]!r} has no {other} in {str(folder)!r} ({len(alone):,} such); add "
                                    "it, or leave such out with unpaired='skip'")
        names = sorted(pictures[stem] for stem in drawn & set(pictures))
        if not names:
            raise UserError(f"{str(images)!r} and {str(masks)!r} have no image and mask of one name; expected "
                            "images/1.jpg and masks/1.png")
        return names

    def _classes(self, root: Path) -> tuple[tuple[str, ...], np.ndarray]:
        """The names, and for each value of a mask what it becomes: int16 ``[65536]``. Raises: UserError."""
        named = self._named(root)
        where = "MaskFolder"
        for value, name in named:
            if value in self.void or value == self.background:
                kind = "void" if value in self.void else "background"
                raise UserError(f"{where}: the value {value} is class {name!r} and {kind} as well; change the field "
                                f"{kind!r}")
        classes = tuple(dict.fromkeys(name for _, name in named))
        check_classes(classes, where)
        if len(classes) > MOST_CLASSES:
            raise UserError(f"{where} has {len(classes)} classes; expected at most {MOST_CLASSES}: join some")
        if len({value for value, _ in named}) < len(named):
            raise UserError(f"{where}: one value names two classes; expected each value once")
        table = np.full(1 << 16, {"raise": _UNKNOWN, "background": 0, "void": VOID}[self.others], np.int16)
        for value, name in named:
            table[value] = classes.index(name) + 1
        table[list(self.void)] = VOID
        if self.background is not None:
            table[self.background] = 0
        return classes, table

    def _named(self, root: Path) -> list[tuple[int, str]]:
        """Values and their names, without background and void."""
        first = 0 if self.background is None else 1
        if self.classes is not None:
            values = self.values or range(first, first + len(self.classes))
            if len(values) != len(self.classes):
                raise UserError(f"MaskFolder.values has {len(values)} numbers and classes {len(self.classes)} names; "
                                "expected one value for each name")
            if self.values is None:
                check_classes(self.classes, "MaskFolder.classes")
            return list(zip(values, self.classes, strict=True))
        files = [self.class_file] if self.class_file else [f for f in CLASS_FILES if (root / f).is_file()]
        if files:
            return [(value, name) for value, name in _read_classes(root / files[0], first)
                    if value not in self.void and not (value == self.background and name.lower() in BACKGROUND)]
        every = root / self.masks.partition("{split}")[0]  # of all splits, so that these have the same classes
        return [(v, str(v)) for v in _values(every) if v != self.background and v not in self.void]


@dataclasses.dataclass(eq=False)
class MaskRecords(Records):
    """Images and masks of a split."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    root: str
    mask_folder: str
    names: Strings
    table: np.ndarray  # int16 [65536]: 0 background, c + 1 class c, 255 void, -1 unknown

    def __len__(self) -> int:
        return len(self.names.ends)

    def __getitem__(self, index: int) -> Example:
        id_ = self.names.at(range(len(self))[index])
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
            raise BadImageError(id_, f"its mask has values that are no class: {_some(unknown)}; known are "
                                f"{_some(known)}: name them, or set MaskFolder.others")
        mask = mask.astype(np.uint8)
        present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:VOID])
        return {"id": id_, "image": image, "labels": present.astype(np.int32), "class_mask": mask}

    def _image_size(self, index: int) -> tuple[int, int]:
        id_ = self.names.at(index)
        try:
            return image_size(read_file(f"{self.root}/{id_}", id_))
        except (BadImageError, DecodeError):
            return 0, 0


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")


def _files(folder: Path, extensions: frozenset[str] | set[str]) -> list[str]:
    """Paths of files with one of these extensions, relative, with forward slashes."""
    found = []
    for here, _, names in os.walk(folder):
        below = os.path.relpath(here, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        found += [prefix + name for name in names
                  if not name.startswith(".") and name.rpartition(".")[2].lower() in extensions]
    return found


def _listed(path: Path, names: list[str]) -> list[str]:
    """The images that a list names, with or without extension, in its order. Raises: UserError."""
    known = {name: name for name in names} | {name.rpartition(".")[0]: name for name in names}
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; expected one image a line, in UTF-8") from None
    lines = [line for line in lines if line]
    for line in lines:
        if line not in known:
            raise UserError(f"{path} names {line!r}, which is no image with a mask{nearest(line, known)}")
    chosen = list(dict.fromkeys(known[line] for line in lines))
    if len(chosen) < len(lines) or not lines:
        raise UserError(f"{path} names {'an image twice' if lines else 'no image'}; expected each once")
    return chosen


def _read_classes(path: Path, first: int) -> list[tuple[int, str]]:
    """Values and names in a file. Raises: UserError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return _from_json(json.loads(text), first)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        numbered = [re.fullmatch(r"(\d+)\s*[:,\s]\s*(\S.*)", line) for line in lines]
        if lines and all(numbered):
            return [(int(match[1]), match[2]) for match in numbered]
        return list(enumerate(lines, first if not lines or lines[0].lower() not in BACKGROUND else 0))
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} does not name classes ({error}); expected lines of names or of 'value name', or in "
                        "json a list of names, {value: name} or COCO's categories") from None


def _from_json(data: list | dict, first: int) -> list[tuple[int, str]]:
    if isinstance(data, dict) and "categories" in data:
        data = data["categories"]
    if isinstance(data, dict):
        return [(int(value), str(name)) for value, name in data.items()]
    if all(isinstance(entry, dict) for entry in data):
        return [(int(entry["id"]), str(entry["name"])) for entry in data]
    return list(enumerate(map(str, data), first if not data or str(data[0]).lower() not in BACKGROUND else 0))


def _values(folder: Path) -> list[int]:
    """All values in the masks below a folder, ascending; found once, then kept."""
    names = sorted(_files(folder, {"png"}))
    stats = [(name, (folder / name).stat().st_size, (folder / name).stat().st_mtime_ns) for name in names]
    digest = hashlib.blake2b(repr(stats).encode(errors="surrogateescape"), digest_size=12).hexdigest()
    place = cache_dir() / "mask_values" / f"{digest}.npy"
    if place.is_file():
        return np.load(place, allow_pickle=False).tolist()
    seen = np.zeros(1 << 16, np.bool_)
    for name in names:
        seen[np.unique(decode_mask(read_file(str(folder / name), name), name))] = True
    with kept(place) as temporary:
        np.save(temporary, np.flatnonzero(seen))
    return np.flatnonzero(seen).tolist()
