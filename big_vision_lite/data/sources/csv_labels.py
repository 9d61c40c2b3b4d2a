"""Images and labels from a CSV file with a path and its labels per line.

The file is read once, a block at a time, into columns in the cache: memory does not grow with its length. Opened again,
unchanged, it is memory-mapped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import Columns, mapped_columns, read_columns
from big_vision_lite.data.scans import MAX_CSV_BYTES, check_scan
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.csv_columns import CsvRows, is_text, write_csv_columns
from big_vision_lite.data.sources.csv_table import CsvTable
from big_vision_lite.data.sources.files import (
    FileDataset,
    Fingerprint,
    files_identity,
    missing_file,
    read_lines,
    sizes_and_times,
    text_at,
)
from big_vision_lite.errors import UserError
from big_vision_lite.system.cache import cached_file, cached_path

FORMAT = 1
SAMPLE = 1000
"""Files that ``check="sample"`` looks at."""


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
    check: Literal["all", "sample", "none"] = "all"
    """Of which files existence, size and modification time are read when the source is opened: of all; of 1,000, evenly
    spaced; or of none. Only "all" notices every missing file before a run, and every replaced one before it is resumed.
    It takes some 3 us per file of a local disk, so the others are for tens of millions of files, or slow disks. They
    make other fingerprints."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"file": str(path)} if path.suffix.lower() == ".csv" and path.is_file() else None

    def open(self) -> CsvDataset:
        """Reads the CSV file, unless it was read before and has not changed, and the sizes and times of the images.

        Raises:
          UserError: the file or an image is missing, a row is malformed, or a path is outside the root or occurs twice,
            in any splits.
        """
        if self.fingerprint == "content" and self.check != "all":
            raise UserError(f"CsvLabels: check={self.check!r} with fingerprint='content', which reads all files; "
                            "expected check='all'")
        path = Path(os.path.expanduser(self.file))
        root = os.path.expanduser(self.root) if self.root is not None else str(path.parent)
        table = CsvTable(self.file, path, "CsvLabels.file", "rows path,labels in UTF-8")
        names = self._column_names(table)
        classes = self.classes
        if isinstance(classes, str):
            classes = tuple(read_lines(classes, "CsvLabels.classes", "one name per line"))
        status = path.stat()
        identity = repr((os.path.realpath(path), status.st_size, status.st_mtime_ns, os.path.abspath(root), self.split,
                         classes, self.multi_label))
        key = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=12).hexdigest()
        cached = cached_path("csv", f"{key}-{FORMAT}.arrow")
        if (columns := read_columns(cached)) is None:
            check_scan(self.file, status.st_size, MAX_CSV_BYTES, "bytes")
            with cached_file(cached) as temporary:
                write_csv_columns(CsvRows(table, names, root), self.split, classes, self.multi_label, temporary)
                columns = mapped_columns(temporary)
            columns = dataclasses.replace(columns, path=cached)
        metadata = columns.metadata
        identity = f"csv-{metadata['digest']}-{self._check_files(table, root, columns.ids)}"
        return CsvDataset(tuple(json.loads(metadata["classes"])), json.loads(metadata["multi_label"]), identity, root,
                          columns.ids, columns)

    def _column_names(self, table: CsvTable) -> list[str]:
        """Of paths, labels and, if there is one to choose, split. Raises: UserError."""
        names = table.names
        column = next((name for name in ("labels", "label") if name in names), None)
        if "path" not in names or column is None or (self.split is not None and "split" not in names):
            raise UserError(f"{self.file} has the columns {', '.join(names) or 'none'}; expected path,labels"
                            + (",split" if self.split is not None else ""))
        if len(set(names)) < len(names):
            raise UserError(f"{self.file} has the columns {', '.join(names)}; expected each once")
        return ["path", column, *(["split"] if self.split is not None else [])]

    def _check_files(self, table: CsvTable, root: str, names: pa.LargeBinaryArray) -> str:
        """A digest of the files that `check` says. Raises: UserError when one is missing."""
        if self.check == "none":
            return "unchecked"
        at = np.arange(len(names))
        if self.check == "sample" and len(names) > SAMPLE:
            at = np.linspace(0, len(names) - 1, SAMPLE).astype(np.int64)
            names = names.take(pa.array(at))
        stats = sizes_and_times(root, names)
        missing = np.flatnonzero(stats[:, 0] < 0)
        if len(missing):
            line = table.line(self._row(table, int(at[missing[0]])))
            raise missing_file(root, text_at(names, int(missing[0])), f"{self.file} line {line}", len(missing))
        every = map(os.fsdecode, names.to_pylist()) if self.fingerprint == "content" else ()
        return ("sample-" if self.check == "sample" else "") + files_identity(root, every, stats, self.fingerprint)

    def _row(self, table: CsvTable, index: int) -> int:
        """The row of the file that has the example ``index`` of the split."""
        if self.split is None:
            return index
        before = 0
        for (splits,) in table.batches(["split"]):
            at = np.flatnonzero(is_text(splits, self.split))
            if index < len(at):
                return before + int(at[index])
            index, before = index - len(at), before + len(splits)
        raise IndexError(index)


@dataclasses.dataclass(eq=False)
class CsvDataset(FileDataset):
    """The rows of a split."""

    columns: Columns

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return text_at(self.names, index), self.columns.labels.row(index)

    def label_columns(self) -> Columns:
        return self.columns

    def __getstate__(self) -> dict:  # the names are those of the columns, which pickle as the name of their file
        return {name: value for name, value in self.__dict__.items() if name != "names"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, names=state["columns"].ids)
