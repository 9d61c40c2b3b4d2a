"""Ids and labels of a whole dataset without its images: made by one scan, cached as a file of columns.

Its checksum is verified at 3 GB/s when it is opened; a damaged one is made again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import (
    Columns,
    has_repeats,
    id_keys,
    is_sound,
    mapped_columns,
    read_columns,
    write_columns,
)
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.scans import MAX_EXAMPLES, check_scan
from big_vision_lite.data.source import Dataset
from big_vision_lite.errors import UserError
from big_vision_lite.system.cache import cached_file, cached_path
from big_vision_lite.system.cores import usable_cores

FORMAT = 3
CHUNK = 1024
"""Examples that a thread reads at a time."""


def label_index(dataset: Dataset) -> Columns:
    """Ids, keys and labels of a dataset: its own columns, where it has them; else read from the cache, or made by
    reading every id and label once.

    Raises:
      UserError: two examples have the same id, or a label is not one of the classes; there are too many examples to
        read them one by one (see `data.scans`); or as `Dataset.label_columns`.
    """
    if (columns := dataset.label_columns()) is not None:
        return columns
    path = index_path(dataset)
    if (index := read_columns(path)) is not None and len(index) == len(dataset):
        return index
    if (columns := dataset.column_pieces()) is None:
        check_scan(f"the dataset {dataset.fingerprint}", len(dataset), MAX_EXAMPLES, "examples")
        columns = iter((_scan(dataset),))
    with cached_file(path) as temporary:
        write_columns(columns, temporary)
        index = mapped_columns(temporary)  # which stays when the file is moved or removed
        check_columns(index, len(dataset.classes), dataset.multi_label)
    return dataclasses.replace(index, path=path if is_sound(path) else None)


def index_path(dataset: Dataset) -> Path:
    """Where the labels of a dataset are stored that has no columns of its own."""
    return cached_path("label_index", f"{dataset.fingerprint.replace('/', '_')}-{FORMAT}.arrow")


def _scan(dataset: Dataset) -> Columns:
    from rich.console import Console
    from rich.progress import track

    def read(chunk: range) -> tuple[pa.LargeBinaryArray, np.ndarray, list[int], np.ndarray]:
        ids, rows = zip(*map(dataset.labels, chunk), strict=True)
        encoded = pa.array([id_.encode(errors="surrogateescape") for id_ in ids], pa.large_binary())
        return encoded, id_keys(encoded), [len(row) for row in rows], np.concatenate(rows).astype(np.int32)

    every = range(len(dataset))
    chunks = [every[start : start + CHUNK] for start in every[::CHUNK]]
    console = Console(stderr=True)
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
        parts = track(pool.map(read, chunks), "reading labels", len(chunks), console=console, transient=True,
                      disable=not console.is_terminal)
        ids, keys, counts, values = zip(*parts, strict=True)
    labels = Ragged(np.cumsum(np.concatenate(counts), dtype=np.int64), np.concatenate(values))
    return Columns(labels, np.concatenate(keys), pa.concat_arrays(ids))


def check_columns(index: Columns, classes: int, multi_label: bool) -> None:
    """Raises: UserError, as `label_index`, or an example has several labels or none where it must have one."""
    wrong, first, several = 0, "", ""
    for piece in index.pieces():
        out_of_range = np.flatnonzero((piece.labels.values < 0) | (piece.labels.values >= classes))
        wrong += len(out_of_range)
        if len(out_of_range) and not first:
            row = int(np.searchsorted(piece.labels.ends, out_of_range[0], side="right"))
            first = f"example {piece.id(row)!r} has label {piece.labels.values[out_of_range[0]]}"
        counts = piece.labels.counts()
        if not (multi_label or several) and (counts != 1).any():
            row = int(np.flatnonzero(counts != 1)[0])
            several = f"example {piece.id(row)!r} has {counts[row]} labels"
    if first:
        raise UserError(f"{first}; expected 0 to {classes - 1}, because there are {classes} classes; {wrong} labels "
                        "are out of range")
    if several:
        raise UserError(f"{several} in a source with one label per image; give it one, or make the source multi_label")
    if not has_repeats(index.keys):
        return
    order = np.argsort(index.keys, kind="stable")
    for at in np.flatnonzero(np.diff(index.keys[order]) == 0):
        first, second = int(order[at]), int(order[at + 1])
        if index.id(first) == index.id(second):  # and not merely the same 64-bit key
            raise UserError(f"examples {first} and {second} have the same id {index.id(first)!r}; ids must differ, "
                            "because curation and manifests go by them")
