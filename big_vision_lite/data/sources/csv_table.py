"""The rows of a csv file as columns of text, some 4 MB of the file at a time.

Arrow reads blocks without quotes. From the first block that has a quote, or that Arrow refuses, Python's csv module
reads the rest, some ten times slower: it alone is strict about quotes, and names what is wrong with a malformed row.
Both read the same rows.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from big_vision_lite.errors import UserError, reading
from big_vision_lite.system.parse import BOM, open_regular

BLOCK = 1 << 22
ROWS = 1 << 16
"""Rows that the csv module reads at a time."""


class CsvTable:
    """A csv file in UTF-8 whose first row has the names of the columns.

    Attributes:
      names: stripped.

    Raises:
      UserError: the file cannot be read. The message says which ``field`` names it, and what is ``expected`` in it.
    """

    def __init__(self, file: str, path: Path, field: str, expected: str):
        self.file, self._path = file, path
        self._reading = f"{field} {file!r}", f"expected {expected}", (OSError, ValueError, csv.Error)
        with reading(*self._reading), self._rows(0) as rows:
            self.names = [name.strip() for name in next(rows, [])]

    def batches(self, columns: Sequence[str]) -> Iterator[list[pa.StringArray]]:
        """The given columns of consecutive rows; null where a row has too few values. Empty lines are no rows.

        Raises:
          UserError: the file cannot be read, or a row has more values than there are columns.
        """
        with reading(*self._reading), open(open_regular(self._path), "rb") as file:
            header = file.readline()
            start, row = 0, 0
            if b'"' not in header and b"\r" not in header.removesuffix(b"\n").removesuffix(b"\r"):
                start = file.tell()
                while block := file.read(BLOCK):
                    block += file.readline()  # up to the end of a row
                    if (batch := self._parsed(block, columns)) is None:
                        break
                    if len(batch[0]):
                        yield batch
                    start, row = file.tell(), row + len(batch[0])
                else:
                    return
            yield from self._python_batches(start, row, columns)

    def line(self, row: int) -> int:
        """The number, from 1, of the line in which row ``row``, from 0, ends."""
        with self._rows(0) as rows:
            next(rows)
            next(itertools.islice(filter(None, rows), row, None))
            return rows.line_num

    def _parsed(self, block: bytes, columns: Sequence[str]) -> list[pa.StringArray] | None:
        """Whole rows, by Arrow; None if the csv module has to read them."""
        if b'"' in block:
            return None
        try:
            table = pa.csv.read_csv(
                pa.BufferReader(block), pa.csv.ReadOptions(column_names=self.names, block_size=len(block) + 1),
                convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()),
                                                      include_columns=list(columns)))
        except (pa.ArrowException, OverflowError):
            return None
        arrays = [table[name].combine_chunks() for name in columns]
        too_long = any((pc.max(pc.binary_length(array)).as_py() or 0) > csv.field_size_limit() for array in arrays)
        return None if too_long else arrays

    def _python_batches(self, start: int, row: int, columns: Sequence[str]) -> Iterator[list[pa.StringArray]]:
        """`batches` from the byte ``start``, where row ``row`` begins, or before the header."""
        with self._rows(start) as rows:
            if start == 0:
                next(rows)
            places = [self.names.index(name) for name in columns]
            full = filter(None, rows)
            while some := list(itertools.islice(full, ROWS)):
                if max(map(len, some)) > len(self.names):
                    wide = next(i for i, values in enumerate(some) if len(values) > len(self.names))
                    raise UserError(f"{self.file} line {self.line(row + wide)} has more values than columns; quote "
                                    "paths and labels that contain a comma")
                yield [pa.array([values[at] if at < len(values) else None for values in some], pa.string())
                       for at in places]
                row += len(some)

    @contextlib.contextmanager
    def _rows(self, start: int) -> Iterator[Any]:
        """The csv module's reader from a byte on."""
        with open(open_regular(self._path), "rb") as file:
            if start == 0 and file.read(len(BOM)) == BOM:
                start = len(BOM)
            file.seek(start)
            yield csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""), strict=True)
