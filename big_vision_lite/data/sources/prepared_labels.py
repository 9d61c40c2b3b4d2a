"""Ids and labels beside the records of a prepared dataset: ``DATASET/VERSION/label_index/SPLIT.arrow``, which
`data.tools.prepare` writes, so that nobody has to read the images for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import Columns, read_columns, write_columns
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.errors import UserError


class Rows(NamedTuple):
    """Rows ``start`` to ``stop - 1`` of a split."""

    split: str
    start: int
    stop: int


def rows_of(parts: Iterable[tuple[str, int, int]], files: dict[str, Sequence[tuple[str, int]]]) -> list[Rows]:
    """Where the records of a dataset are in its splits, adjoining ones as one.

    Args:
      parts: file name, first record and number of records of each piece, in order.
      files: file name and number of records of each file, for every split.

    >>> rows_of([("b", 0, 5), ("c", 0, 2)], {"train": [("a", 5), ("b", 5), ("c", 5)]})
    [Rows(split='train', start=5, stop=12)]
    """
    place = {}
    for split, shards in files.items():
        before = 0
        for name, length in shards:
            place[name] = split, before
            before += length
    rows: list[Rows] = []
    for name, skip, take in parts:
        split, before = place[name]
        start = before + skip
        if rows and (rows[-1].split, rows[-1].stop) == (split, start):
            start = rows.pop().start
        rows.append(Rows(split, start, before + skip + take))
    return rows


def write_labels(folder: Path, split: str, columns: Iterable[Columns], content: str) -> None:
    """Write the labels of a split.

    Args:
      content: the hash of the split's examples (`tfds.CONTENT`), by which `read_labels` knows that they belong to it.

    Raises:
      OSError: it cannot be written.
    """
    path = label_path(folder, split)
    path.parent.mkdir(exist_ok=True)
    write_columns(columns, path, {"content": content})


def read_labels(folder: str, rows: Sequence[Rows], content: dict[str, str], lengths: dict[str, int]) -> Columns | None:
    """The columns of rows of prepared splits; None if a split has none beside its records.

    Args:
      content: the hash of the examples of each split; ``lengths``: their numbers.

    Raises:
      UserError: a file is damaged or incomplete, or of other data.
    """
    found: dict[str, Columns] = {}
    for split in dict.fromkeys(row.split for row in rows):
        path = label_path(Path(folder), split)
        if not os.path.lexists(path):
            return None
        advice = "remove it, so that labels are read from the records, or prepare the dataset again"
        if (columns := read_columns(path)) is None:
            raise UserError(f"{path} is damaged or was not written to its end; {advice}")
        if columns.metadata.get("content") != content.get(split, "") or len(columns) != lengths[split]:
            raise UserError(f"{path} holds {len(columns):,} ids and labels of other data than the {lengths[split]:,} "
                            f"records beside it; {advice}")
        found[split] = columns
    pieces = [found[row.split] if (row.start, row.stop) == (0, lengths[row.split])
              else found[row.split].slice(row.start, row.stop) for row in rows]
    return pieces[0] if len(pieces) == 1 else _joined(pieces)


def _joined(pieces: Sequence[Columns]) -> Columns:
    labels = Ragged.concatenate([piece.labels for piece in pieces])
    return Columns(labels, np.concatenate([piece.keys for piece in pieces]),
                   pa.concat_arrays([piece.ids for piece in pieces]))


def label_path(folder: Path, split: str) -> Path:
    """The file of a split's labels in the folder of a version."""
    return folder / "label_index" / f"{split}.arrow"
