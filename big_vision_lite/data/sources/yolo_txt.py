"""Images with boxes in YOLO's text files: one per image, a line ``class cx cy w h`` per object, in fractions."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Source
from big_vision_lite.data.sources.box_records import BoxCount, clip_boxes
from big_vision_lite.data.sources.files import (
    FileDataset,
    Fingerprint,
    by_stem,
    check_classes,
    check_files,
    compact,
    in_threads,
    read_lines,
    scan,
    text_at,
)
from big_vision_lite.data.sources.splits import check_held_out, hashed_split, spellings, standard_split
from big_vision_lite.errors import UserError, nearest, reading
from big_vision_lite.system.parse import convert, read_text

CLASS_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "labels/classes.txt")
"""Where names of classes are looked for, below the root."""


@dataclasses.dataclass(frozen=True)
class YoloTxt(Source):
    """Images with the boxes of text files of the same names, as Ultralytics and Roboflow write them.

    Folders are ``images/SPLIT`` and ``labels/SPLIT``, ``SPLIT/images`` and ``SPLIT/labels``, or ``images`` and
    ``labels`` alone, whose images are assigned to splits by a hash of their name. A line is ``class cx cy w h`` or a
    polygon, ``class x1 y1 x2 y2 x3 y3 ...``, whose bounding box is taken; coordinates are fractions of the upright
    image. An image without a text file has no objects. Labels are those of all objects; the id of an example is the
    path of its image below the folder of images.
    """

    root: str = ""
    """Folder; ``~`` is allowed."""
    split: str = "train"
    """train, validation (or val, valid), test, or the name of any other folder; ``all`` for all images."""
    classes: tuple[str, ...] | None = None
    """Names in order. None: ``names`` of data.yaml, or the lines of classes.txt."""
    held_out: float = 0.1
    """Without split folders: the fraction of images for validation, and again for test; below 0.5."""
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`."""

    precedence: ClassVar[int] = 2

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        beside = (path / "images").is_dir() and (path / "labels").is_dir()
        below = (path / "train" / "images").is_dir() and (path / "train" / "labels").is_dir()
        return {"root": str(path)} if beside or below else None

    def __post_init__(self) -> None:
        check_held_out(self)

    def open(self) -> YoloDataset:
        """Lists the folders and reads all text files of the split.

        Raises:
          UserError: no such folder or split, no names of classes, a line that is no object, a class without a name, or
            all boxes are empty.
        """
        root = Path(os.path.expanduser(self.root))
        images, labels, names = self._files(root)
        classes = self.classes or _class_names(root)
        check_classes(classes, "YoloTxt.classes" if self.classes else str(root))
        text_of = {stem: f"{labels}/{stem}.txt" for stem in (name.rpartition(".")[0] for name in names)}
        rows = in_threads(lambda path: _read_objects(path, len(classes)), list(text_of.values()))
        objects = np.concatenate([np.zeros((0, 5)), *rows])
        counts = np.array([len(row) for row in rows], np.int64)
        boxes, valid, count = clip_boxes(objects[:, 1:], np.ones((len(objects), 2), np.int64), str(labels))
        row_of = np.repeat(np.arange(len(names)), counts)[valid]
        content = repr((classes, names, objects.tolist()))
        digest = hashlib.blake2b(content.encode(errors="surrogateescape"), digest_size=8).hexdigest()
        identity = check_files(str(images), ((name, str(images)) for name in names), self.fingerprint)
        return YoloDataset(tuple(classes), True, f"yolo-{digest}-{identity}", str(images), compact(names), count,
                           Ragged(np.cumsum(np.bincount(row_of, minlength=len(names))),
                                  objects[valid, 0].astype(np.int32)), boxes)

    def _files(self, root: Path) -> tuple[Path, Path, list[str]]:
        """The folders of images and labels, and the split's images. Raises: UserError."""
        for name in spellings(self.split):
            for images, labels in ((f"images/{name}", f"labels/{name}"), (f"{name}/images", f"{name}/labels")):
                if (root / images).is_dir():
                    return root / images, root / labels, self._listed(root / images)
        if not (root / "images").is_dir():
            raise UserError(f"{self.root!r} has no split {self.split!r}; expected images/{self.split} and "
                            f"labels/{self.split}, or {self.split}/images and {self.split}/labels")
        names, split = self._listed(root / "images"), standard_split(self.split)
        folders = [entry.name for entry in os.scandir(root / "images") if entry.is_dir()]
        if self.split != "all" and (split is None or folders):
            raise UserError(f"{self.root!r} has no split {self.split!r}" + nearest(self.split, [*folders, "all"]))
        if self.split != "all":
            names = [name for name in names if hashed_split(name, self.held_out) == split]
            if not names:
                raise UserError(f"no image of {self.root!r} falls into split {split!r} with held_out="
                                f"{self.held_out:g}; make folders images/{split} and labels/{split}")
        return root / "images", root / "labels", names

    def _listed(self, folder: Path) -> list[str]:
        """Raises: UserError: there is no image, or two differ in their extension alone."""
        names = sorted(by_stem((name for name, *_ in scan(str(folder))), str(folder)).values())
        if not names:
            raise UserError(f"folder {str(folder)!r} has no images")
        return names


@dataclasses.dataclass(eq=False)
class YoloDataset(FileDataset):
    """Images and boxes of a split."""

    count: BoxCount
    objects: Ragged  # the class of each object, in the order of the file
    boxes: np.ndarray

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return text_at(self.names, index), np.unique(self.objects.row(index))

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        span = slice(int(self.objects.ends[index - 1]) if index else 0, int(self.objects.ends[index]))
        return super().__getitem__(index) | {"boxes": self.boxes[span], "box_labels": self.objects.row(index)}


def _class_names(root: Path) -> tuple[str, ...]:
    """Raises: UserError: there are none, or they cannot be read."""
    path = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        raise UserError(f"{str(root)!r} has no names of classes; expected {', '.join(CLASS_FILES)}, or set "
                        "YoloTxt.classes")
    if path.suffix == ".txt":
        return tuple(read_lines(path, "the names of classes", "one name per line, in UTF-8"))
    expected = "expected 'names', a list or {number: name}"
    with reading(path, expected, (yaml.YAMLError, ValueError, RecursionError)):
        content = yaml.safe_load(read_text(path))
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        numbered = convert(names, dict[int, str], path, expected)
        if sorted(numbered) != list(range(len(numbered))):
            raise UserError(f"{path}: names have the numbers {sorted(numbered)[:10]}; expected 0, 1, 2, ...")
        return tuple(numbered[number] for number in range(len(numbered)))
    return tuple(convert(names, list[str], path, expected))


def _read_objects(path: str, classes: int) -> np.ndarray:
    """float64 ``[n, 5]``: class and corners (x1, y1, x2, y2) of each line; none if there is no file. Raises:
    UserError."""
    objects = []
    if not os.path.isfile(path):
        return np.zeros((0, 5))
    for number, line in enumerate(read_text(Path(path)).splitlines(), 1):
        if not line.strip():
            continue
        expected = f"line {number} of {path} is {line[:60]!r}; expected class cx cy w h, or a polygon, in fractions"
        try:
            label, *values = map(float, line.split())
        except ValueError:
            raise UserError(expected) from None
        polygon = len(values) >= 6 and len(values) % 2 == 0
        if not (len(values) == 4 or polygon) or not all(math.isfinite(v) and -1 <= v <= 2 for v in values):
            raise UserError(expected)
        if label != int(label) or not 0 <= label < classes:
            raise UserError(f"line {number} of {path} has class {label:g}; expected 0 to {classes - 1}, as there are "
                            f"{classes} names")
        if polygon:
            x, y = values[::2], values[1::2]
            objects.append((label, min(x), min(y), max(x), max(y)))
        else:
            cx, cy, w, h = values
            objects.append((label, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    return np.array(objects, np.float64).reshape(-1, 5)
