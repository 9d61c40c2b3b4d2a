"""Images and labels from a csv file: a path and its labels a line."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import posixpath
from pathlib import Path

import numpy as np

from big_vision_lite.data.files import Strings, check_classes, check_files, check_inside, read_file
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class CsvLabels(Source):
    """A csv file with a header: ``path,labels``, several labels separated by ``;``, and maybe a column ``split``.

    The id of an example is its path as written, with forward slashes; of an absolute path what is below ``root``.
    Without ``classes``, the names of the whole file are the classes, sorted, so that every split has the same.
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
          UserError: the file or an image is missing, a row is not as expected (names its line), a path leaves the root
            or is there twice, in whichever splits.
        """
        path = Path(self.file).expanduser()
        root = os.path.expanduser(self.root) if self.root is not None else str(path.parent)
        rows = self._rows(path)
        classes = self._classes()
        if classes is None:
            classes = tuple(sorted({label for _, _, labels, _ in rows for label in labels}))
        if rows:
            check_classes(classes, self.file if self.classes is None else "CsvLabels.classes")
        multi_label = self.multi_label
        if multi_label is None:
            multi_label = any(len(labels) != 1 for _, _, labels, _ in rows)
        number = {name: i for i, name in enumerate(classes)}
        kept, seen = [], {}
        for line, written, labels, split in rows:
            where = f"{self.file} line {line}"
            name = _below(root, written, where)
            if name in seen:
                raise UserError(f"{where}: {name!r} is there already in line {seen[name]}; expected one line an image, "
                                "with ; between its labels")
            seen[name] = line
            if self.split is not None and split != self.split:
                continue
            for label in labels:
                if label not in number:
                    raise UserError(f"{where}: there is no class {label!r}" + nearest(label, classes))
            if not multi_label and len(labels) != 1:
                raise UserError(f"{where}: {len(labels)} labels; expected one, for multi_label is False")
            kept.append((line, name, sorted({number[label] for label in labels})))
        if not kept:
            splits = {split for *_, split in rows} - {None}
            raise UserError(f"{self.file} has no rows" + (f" of split {self.split!r}" + nearest(self.split, splits)
                                                          if self.split is not None else "; expected path,labels"))
        check_files(root, ((name, f"{self.file} line {line}") for line, name, _ in kept))
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
                reader = csv.reader(file)
                names = [name.strip() for name in next(reader, [])]
                column = next((name for name in ("labels", "label") if name in names), None)
                if "path" not in names or column is None or (self.split is not None and "split" not in names):
                    raise UserError(f"{self.file} has the columns {', '.join(names) or 'none'}; expected path,labels"
                                    + (",split" if self.split is not None else ""))
                places = [names.index(name) for name in ("path", column)]
                split = names.index("split") if "split" in names else None
                for row in filter(None, reader):
                    if len(row) > len(names):
                        raise UserError(f"{self.file} line {reader.line_num} has more values than there are columns; "
                                        "put a path or label that holds a comma in double quotes")
                    if len(row) <= max(places) or not row[places[0]].strip():
                        raise UserError(f"{self.file} line {reader.line_num} has no path or no {column}; expected "
                                        f"{','.join(names)}")
                    name, labels = (row[place] for place in places)
                    rows.append((reader.line_num, name.strip().replace("\\", "/"),
                                 [label for label in map(str.strip, labels.split(";")) if label],
                                 row[split] if split is not None and split < len(row) else None))
        except OSError as error:
            raise UserError(f"cannot read CsvLabels.file {self.file!r}: {error.strerror or error}") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"cannot read CsvLabels.file {self.file!r}: {error}; expected rows path,labels in UTF-8"
                            ) from None
        return rows

    def _classes(self) -> tuple[str, ...] | None:
        if not isinstance(self.classes, str):
            return self.classes
        try:
            lines = Path(self.classes).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read CsvLabels.classes {self.classes!r}: {error}") from None
        return tuple(line.strip() for line in lines if line.strip())


def _below(root: str, path: str, where: str) -> str:
    """The path relative to ``root`` and without detours, so that one file has one id. Raises: UserError."""
    if os.path.isabs(path) and os.path.commonpath((os.path.abspath(root), path)) == os.path.abspath(root):
        path = os.path.relpath(path, root)
    check_inside(path, where)
    return posixpath.normpath(path)


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
