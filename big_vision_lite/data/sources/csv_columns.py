"""Ids and labels of a csv file as columns: the file is read once, a block at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from big_vision_lite.data.columns import (
    Columns,
    ColumnsWriter,
    has_repeats,
    id_keys,
    mapped_columns,
    offsets_and_bytes,
    write_columns,
)
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.sources.csv_table import CsvTable
from big_vision_lite.data.sources.files import check_classes, check_inside
from big_vision_lite.errors import UserError, nearest

PIECE = 1 << 16
"""Rows that are processed at a time."""
SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B)))
"""What str.strip removes."""
UNUSUAL = r"^$|^/|/$|\\|//|(^|/)\.\.?(/|$)"
"""Paths that may change when they are normalised, or are refused."""


def write_csv_columns(rows: CsvRows, split: str | None, given: tuple[str, ...] | None, multi_label: bool | None,
                      path: Path) -> None:
    """Write the columns of a split.

    Args:
      given: names of the classes; None: all labels of the file, sorted.
      multi_label: None: whether any row of the file has no label or several.
      path: the file, whose metadata have ``classes`` and ``multi_label`` as JSON, and ``digest``, a hash of both and of
        all ids and labels.

    Raises:
      UserError: a row is malformed, a path is outside the root or in two rows of the file, or there are no rows.
      OSError: it cannot be written.
    """
    file = rows.table.file
    scan = _Scan({name: i for i, name in enumerate(given or ())})
    staged = path.with_suffix(".staged")
    write_columns(_numbered_rows(rows, split, given, multi_label, scan), staged)
    classes = tuple(sorted(scan.number)) if given is None else given
    if scan.keys and given is None:
        check_classes(classes, file)
    if scan.keys:
        _check_paths_differ(rows, np.concatenate(scan.keys))
    columns = mapped_columns(staged)
    if not len(columns):
        of_split = "" if split is None else f" of split {split!r}{nearest(split, scan.splits)}"
        raise UserError(f"{file} has no rows{of_split or '; expected path,labels'}")
    _renumber(columns, scan.number, classes, scan.multi_label if multi_label is None else multi_label, path)
    staged.unlink()


def is_text(texts: pa.StringArray, text: str) -> np.ndarray:
    """bool ``[n]``: which texts are ``text``; null is none."""
    return pc.fill_null(pc.equal(texts, text), False).to_numpy(zero_copy_only=False)


class CsvRows:
    """The rows of a csv file with normalised paths, a batch at a time. Iterating raises UserError."""

    def __init__(self, table: CsvTable, names: list[str], root: str):
        self.table, self.names, self.root = table, names, root

    def where(self, row: int) -> str:
        return f"{self.table.file} line {self.table.line(row)}"

    def __iter__(self) -> Iterator[tuple[int, pa.LargeBinaryArray, pa.StringArray, pa.StringArray | None]]:
        """(number of the first row, ids, labels as written, splits if they are read)"""
        row = 0
        for paths, labels, *splits in self.table.batches(self.names):
            paths = pc.utf8_trim(paths, characters=SPACES)
            lacking = _true(pc.or_(pc.is_null(labels), pc.fill_null(pc.equal(paths, ""), True)))
            if lacking.size:
                raise UserError(f"{self.where(row + int(lacking[0]))} has no path or no {self.names[1]}; expected "
                                f"{','.join(self.table.names)}")
            unusual = pc.match_substring_regex(paths, UNUSUAL)
            if (at := _true(unusual)).size:
                changed = [self._relative(paths[i].as_py().replace("\\", "/"), row + i) for i in at.tolist()]
                paths = pc.replace_with_mask(paths, unusual, pa.array(changed, pa.string()))
            yield row, paths.cast(pa.large_binary()), labels, splits[0] if splits else None
            row += len(paths)

    def _relative(self, path: str, row: int) -> str:
        """Relative to the root, normalised so that each file has one id. Raises: UserError if it is outside."""
        root = os.path.abspath(self.root)
        if os.path.isabs(path) and os.path.commonpath((root, path)) == root:
            path = os.path.relpath(path, self.root)
        if os.path.isabs(path) or ".." in path.split("/"):  # finding the line takes long
            check_inside(path, self.where(row))
        return posixpath.normpath(path)


@dataclasses.dataclass
class _Scan:
    """What is learned of the whole file while its rows are read."""

    number: dict[str, int]
    """Of each label: its index in the classes, if they are given; others in the order in which they appear."""
    keys: list[np.ndarray] = dataclasses.field(default_factory=list)
    splits: set[str] = dataclasses.field(default_factory=set)
    multi_label: bool = False

    def add(self, keys: np.ndarray, counts: np.ndarray, splits: pa.StringArray | None) -> None:
        self.keys.append(keys)
        self.multi_label |= bool((counts != 1).any())
        if splits is not None:
            self.splits.update(set(splits.unique().to_pylist()) - {None})


def _numbered_rows(rows: CsvRows, split: str | None, given: tuple[str, ...] | None, multi_label: bool | None,
                   scan: _Scan) -> Iterator[Columns]:
    """The rows of a split, with labels as in ``scan.number``, in any order and repeated. Raises: UserError."""
    for first, ids, labels, splits in rows:
        if given is not None and first == 0:
            check_classes(given, "CsvLabels.classes")
        keys, (counts, values) = id_keys(ids), _numbered(labels, scan.number)
        scan.add(keys, counts, splits)
        columns, at = Columns(Ragged(np.cumsum(counts), values), keys, ids), np.arange(len(ids))
        if splits is not None:
            at = np.flatnonzero(is_text(splits, split))
            columns = Columns(columns.labels.take(at), keys[at], ids.take(pa.array(at)))
        labels, counts = columns.labels, columns.labels.counts()
        if given is not None and (unknown := np.flatnonzero(labels.values >= len(given))).size:
            name = list(scan.number)[labels.values[unknown[0]]]
            where = rows.where(first + int(at[labels.rows()[unknown[0]]]))
            raise UserError(f"{where}: there is no class {name!r}" + nearest(name, given))
        if multi_label is False and (wrong := np.flatnonzero(counts != 1)).size:
            where = rows.where(first + int(at[wrong[0]]))
            raise UserError(f"{where}: {counts[wrong[0]]} labels; expected one, because multi_label is False")
        yield columns


def _numbered(labels: pa.StringArray, number: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """How many labels each row has, int64 ``[n]``, and their numbers, int32; new ones are added to ``number``."""
    lists = pc.split_pattern(labels, ";")
    texts, rows = pc.utf8_trim(lists.flatten(), characters=SPACES), pc.list_parent_indices(lists)
    given = pc.not_equal(texts, "")
    encoded = texts.filter(given).dictionary_encode()
    numbers = [number.setdefault(name, len(number)) for name in encoded.dictionary.to_pylist()]
    counts = np.bincount(rows.filter(given).to_numpy(), minlength=len(labels))
    return counts, np.array(numbers, np.int32)[encoded.indices.to_numpy()]


def _check_paths_differ(rows: CsvRows, keys: np.ndarray) -> None:
    """Raises: UserError when a path is in two rows of the file."""
    if not has_repeats(keys):
        return
    ordered = np.sort(keys)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    first: dict[bytes, int] = {}
    for row, ids, *_ in rows:
        for i in np.flatnonzero(np.isin(keys[row : row + len(ids)], repeated)).tolist():
            id_ = ids[i].as_py()
            if id_ in first:  # and not merely another path of the same key
                raise UserError(f"{rows.where(row + i)}: {os.fsdecode(id_)!r} is also in line "
                                f"{rows.table.line(first[id_])}; expected one line per image, with ; between its "
                                "labels")
            first[id_] = row + i


def _renumber(staged: Columns, number: dict[str, int], classes: tuple[str, ...], multi_label: bool, path: Path) -> None:
    """Write columns whose labels are those of ``classes``, with a digest of ids and labels. Raises: OSError."""
    index = {name: i for i, name in enumerate(classes)}
    new = np.array([index.get(name, -1) for name in number], np.int32)  # -1: of other splits alone
    digest = hashlib.blake2b(repr((classes, multi_label)).encode(), digest_size=8)
    with ColumnsWriter(path) as writer:
        for start in range(0, len(staged), PIECE):
            some = staged.slice(start, start + PIECE)
            labels = Ragged(some.labels.ends, new[some.labels.values])
            if (some.labels.counts() > 1).any():
                labels = Ragged.from_pairs(labels.rows(), labels.values, len(some), len(classes))
            writer.append(some.ids, some.keys, labels)
            digest.update(_text(some.ids, labels))
        writer.finish({"classes": json.dumps(classes), "multi_label": json.dumps(multi_label),
                       "digest": digest.hexdigest()})


def _text(ids: pa.LargeBinaryArray, labels: Ragged) -> np.ndarray:
    """Of each row its id, NUL, its labels as ``[1, 2]``, and NUL: what fingerprints have always hashed."""
    offsets = pa.array(np.concatenate(([0], labels.ends)), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(labels.values).cast(pa.string()))
    between, after, nothing = (pa.scalar(text, pa.large_binary()) for text in (b"\0[", b"]\0", b""))
    joined = pc.binary_join(lists, ", ").cast(pa.large_binary())
    return offsets_and_bytes(pc.binary_join_element_wise(ids, between, joined, after, nothing))[1]


def _true(mask: pa.BooleanArray) -> np.ndarray:
    """Where a mask is true."""
    return np.flatnonzero(pc.fill_null(mask, True).to_numpy(zero_copy_only=False))
