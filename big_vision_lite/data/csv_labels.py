"""Images and labels from a csv file: a path and its labels a line."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from big_vision_lite.data.files import Strings, check_files, check_inside, read_file
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class CsvLabels(Source):
    """A csv file with a header: ``path,labels``, several labels separated by ``;``, and maybe a column ``split``.

    The id of an example is its path as written. Without ``classes``, the names of the whole file are the classes,
    sorted, so that every split has the same.
    """

    file: str = ""
    root: str | None = None
    """Folder that paths are relative to; None: the folder of the csv file."""
    split: str | None = None
    """Rows whose column ``split`` says this; None: all rows."""
    classes: tuple[str, ...] | str | None = None
    """Names in order, or a text file of them with one a line."""
    multi_label: bool | None = None
    """Whether an image may carry any number of labels; None: when a row of the file has none or several."""

    def open(self) -> CsvRecords:
        """Reads the csv file and lists the folders; no image is read.

        Raises:
          UserError: the file or an image is missing, a row is not as expected (names its line), a path is there twice.
        """
        path = Path(self.file).expanduser()
        root = os.path.expanduser(self.root) if self.root is not None else str(path.parent)
        rows = self._rows(path)
        classes = self._classes() or tuple(sorted({label for _, _, labels, _ in rows for label in labels}))
        multi_label = self.multi_label
        if multi_label is None:
            multi_label = any(len(labels) != 1 for _, _, labels, _ in rows)
        number = {name: i for i, name in enumerate(classes)}
        kept, seen = [], {}
        for line, name, labels, split in rows:
            where = f"{self.file} line {line}"
            if self.split is not None and split != self.split:
                continue
            check_inside(name, where)
            if name in seen:
                raise UserError(f"{where}: {name!r} is there already in line {seen[name]}; ids must differ")
            seen[name] = line
            for label in labels:
                if label not in number:
                    raise UserError(f"{where}: there is no class {label!r}" + nearest(label, classes))
            if not multi_label and len(labels) != 1:
                raise UserError(f"{where}: {len(labels)} labels; expected one, for multi_label is False")
            kept.append((where, name, sorted({number[label] for label in labels})))
        if not kept:
            splits = {split for *_, split in rows} - {None}
            raise UserError(f"{self.file} has no rows" + (f" of split {self.split!r}" + nearest(self.split, splits)
                                                          if self.split else "; expected path,labels"))
        check_files(root, ((name, where) for where, name, _ in kept))
        digest = hashlib.blake2b(repr((classes, multi_label)).encode(), digest_size=8)
        for _, name, labels in kept:
            digest.update(f"{name}\0{labels}\0".encode(errors="surrogateescape"))
        return CsvRecords(classes, multi_label, f"csv-{digest.hexdigest()}", root,
                          Strings.of(name for _, name, _ in kept), Ragged.of(labels for _, _, labels in kept))

    def _rows(self, path: Path) -> list[tuple[int, str, list[str], str | None]]:
        """(line, path, labels, split) of each row."""
        rows = []
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                names = reader.fieldnames or []
                column = next((name for name in ("labels", "label") if name in names), None)
                if "path" not in names or column is None or (self.split is not None and "split" not in names):
                    raise UserError(f"{self.file} has the columns {', '.join(names) or 'none'}; expected path,labels"
                                    + (",split" if self.split is not None else ""))
                for row in reader:
                    if row["path"] is None or row[column] is None or not row["path"].strip():
                        raise UserError(f"{self.file} line {reader.line_num} has no "
                                        f"{'path' if not row['path'] else column}; expected path,labels")
                    labels = [label.strip() for label in row[column].split(";")]
                    rows.append((reader.line_num, row["path"].strip().replace("\\", "/"),
                                 [label for label in labels if label], row.get("split")))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"cannot read CsvLabels.file {self.file!r}: {error}; expected rows path,labels") from None
        return rows

    def _classes(self) -> tuple[str, ...] | None:
        if not isinstance(self.classes, str):
            return self.classes
        try:
            lines = Path(self.classes).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read CsvLabels.classes {self.classes!r}: {error}") from None
        return tuple(line.strip() for line in lines if line.strip())


@dataclasses.dataclass(eq=False)
class CsvRecords(Records):
    """The rows, compact."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    root: str
    names: Strings
    labels_of: Ragged

    def __len__(self) -> int:
        return len(self.names.ends)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return self.names.at(index), self.labels_of.row(index)

    def __getitem__(self, index: int) -> Example:
        id_, labels = self.labels(index)
        return {"id": id_, "image": read_file(f"{self.root}/{id_}", id_), "labels": labels}
