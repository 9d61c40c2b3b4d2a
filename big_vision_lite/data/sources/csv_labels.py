"""Images and labels from a CSV file with a path and its labels per line."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import posixpath
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.files import (
    FileDataset,
    Fingerprint,
    check_classes,
    check_files,
    check_inside,
    compact,
    read_lines,
    text_at,
)
from big_vision_lite.errors import UserError, nearest, reading
from big_vision_lite.system.parse import open_regular


@dataclasses.dataclass(frozen=True)
class CsvLabels(Source):
    """A CSV file with the header ``path,labels`` and optionally ``split``; several labels are separated by ``;``.

    The id of an example is its path relative to ``root``, with forward slashes. Without ``classes``, the classes are
    the names in the whole file, sorted, so that every split has the same.
    """

    file: str = ""
    root: str | None = None
    """Folder that paths are relative to; None: the folder of the CSV file."""
    split: str | None = None
    """Use rows with this value in the column ``split``; None: all rows."""
    classes: tuple[str, ...] | str | None = None
    """Names in order, or a text file with one name per line."""
    multi_label: bool | None = None
    """Whether an image may have any number of labels; None: if any row of the file has none or several."""
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"file": str(path)} if path.suffix.lower() == ".csv" and path.is_file() else None

    def open(self) -> CsvDataset:
        """Reads the CSV file and the sizes and times of the images.

        Raises:
          UserError: the file or an image is missing, a row is malformed, or a path is outside the root or occurs twice,
            in any splits.
        """
        path = Path(os.path.expanduser(self.file))
        root = os.path.expanduser(self.root) if self.root is not None else str(path.parent)
        rows = self._rows(path)
        classes = self.classes
        if isinstance(classes, str):
            classes = tuple(read_lines(classes, "CsvLabels.classes", "one name per line"))
        if classes is None:
            classes = tuple(sorted({label for _, _, labels, _ in rows for label in labels}))
        if rows:
            check_classes(classes, self.file if self.classes is None else "CsvLabels.classes")
        multi_label = self.multi_label
        if multi_label is None:
            multi_label = any(len(labels) != 1 for _, _, labels, _ in rows)
        label_of = {name: i for i, name in enumerate(classes)}
        selected, lines = [], {}
        for line, path_text, labels, split in rows:
            where = f"{self.file} line {line}"
            name = _relative(root, path_text, where)
            if name in lines:
                raise UserError(f"{where}: {name!r} is also in line {lines[name]}; expected one line per image, with ; "
                                "between its labels")
            lines[name] = line
            if self.split is not None and split != self.split:
                continue
            for label in labels:
                if label not in label_of:
                    raise UserError(f"{where}: there is no class {label!r}" + nearest(label, classes))
            if not multi_label and len(labels) != 1:
                raise UserError(f"{where}: {len(labels)} labels; expected one, because multi_label is False")
            selected.append((line, name, sorted({label_of[label] for label in labels})))
        if not selected:
            splits = {split for *_, split in rows} - {None}
            raise UserError(f"{self.file} has no rows" + (f" of split {self.split!r}" + nearest(self.split, splits)
                                                          if self.split is not None else "; expected path,labels"))
        places = ((name, f"{self.file} line {line}") for line, name, _ in selected)
        identity = check_files(root, places, self.fingerprint)
        digest = hashlib.blake2b(repr((classes, multi_label)).encode(), digest_size=8)
        for _, name, labels in selected:
            digest.update(f"{name}\0{labels}\0".encode(errors="surrogateescape"))
        return CsvDataset(classes, multi_label, f"csv-{digest.hexdigest()}-{identity}", root,
                          compact(name for _, name, _ in selected), Ragged.of(labels for _, _, labels in selected))

    def _rows(self, path: Path) -> list[tuple[int, str, list[str], str | None]]:
        """(line, path, labels, split) of each row. Raises: UserError."""
        rows = []
        with (reading(f"CsvLabels.file {self.file!r}", "expected rows path,labels in UTF-8",
                      (OSError, ValueError, csv.Error)),
              open(open_regular(path), newline="", encoding="utf-8-sig") as file):
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            column = next((name for name in ("labels", "label") if name in names), None)
            if "path" not in names or column is None or (self.split is not None and "split" not in names):
                raise UserError(f"{self.file} has the columns {', '.join(names) or 'none'}; expected path,labels"
                                + (",split" if self.split is not None else ""))
            if len(set(names)) < len(names):
                raise UserError(f"{self.file} has the columns {', '.join(names)}; expected each once")
            for row in reader:
                if None in row:
                    raise UserError(f"{self.file} line {reader.line_num} has more values than columns; quote paths and "
                                    "labels that contain a comma")
                if row[column] is None or not (row["path"] or "").strip():
                    raise UserError(f"{self.file} line {reader.line_num} has no path or no {column}; expected "
                                    f"{','.join(names)}")
                labels = [label for label in map(str.strip, row[column].split(";")) if label]
                rows.append((reader.line_num, row["path"].strip().replace("\\", "/"), labels, row.get("split")))
        return rows


def _relative(root: str, path: str, where: str) -> str:
    """The path relative to ``root``, normalised so that each file has one id. Raises: UserError if it is outside."""
    if os.path.isabs(path) and os.path.commonpath((os.path.abspath(root), path)) == os.path.abspath(root):
        path = os.path.relpath(path, root)
    check_inside(path, where)
    return posixpath.normpath(path)


@dataclasses.dataclass(eq=False)
class CsvDataset(FileDataset):
    """The rows of a split."""

    labels_of: Ragged

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return text_at(self.names, index), self.labels_of.row(index)
