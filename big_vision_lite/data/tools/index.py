"""The tables that runs need of a large dataset, made once: indices of its files, labels, orders and manifests.

    index((Input(WebDataset("/data/shards"), transform, curate=curation(subset=NestedSubset(10**8))),))

They go into the cache, which other machines read as ``$BVL_SHARED``. What is there already and still fits is kept, so
that an interrupted indexing goes on where it stopped.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import Columns, is_sound, read_columns, with_keys, write_columns
from big_vision_lite.data.curation.label_index import check_columns, index_path, label_index
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.scans import indexing
from big_vision_lite.data.source import Dataset, Source
from big_vision_lite.data.tools.shard_writer import Run
from big_vision_lite.errors import UserError
from big_vision_lite.system.cache import cached_file

SHARDS_PER_JOB = 16
ROWS_PER_JOB = 1 << 15


class Indexed(NamedTuple):
    """What was indexed."""

    images: int
    labels: int
    fingerprint: str


def index(data: Source | Input, run: Run | None = None) -> Indexed:
    """Make whatever a run needs of this data and has to read all of it for.

    Args:
      run: how jobs are run, as `tools.beam.on_beam` with a runner. Its machines see the data and the cache at the same
        places as this one. None: in threads of this process.

    Raises:
      UserError: as `Source.open` and `label_index`; or a file in the cache is damaged, and names it.
    """
    source = data.source if isinstance(data, Input) else data
    with indexing():
        if run is not None:
            count = source.count_files()
            chunks = [range(start, min(start + SHARDS_PER_JOB, count)) for start in range(0, count, SHARDS_PER_JOB)]
            run(_index_files, [(source, chunk) for chunk in chunks], "indexing files", count)
        dataset = source.open()
        if run is not None and dataset.label_columns() is None and dataset.column_pieces() is None:
            _read_labels(source, dataset, run)
        columns = label_index(dataset)
        if columns.path is not None and not is_sound(columns.path, whole=True):
            raise UserError(f"{columns.path} is damaged; remove it and start again")
        used = data.open() if isinstance(data, Input) else dataset
        if isinstance(data, Input) and len(data.transform.shapes) > 1:
            used.image_sizes()
        counted = manifest(used)
    return Indexed(len(used), counted["labels"], used.fingerprint)


def _index_files(source: Source, numbers: range) -> tuple[int]:
    with indexing():
        source.index_files(numbers)
    return (len(numbers),)


def _read_labels(source: Source, dataset: Dataset, run: Run) -> None:
    """Labels that must be read one by one, in pieces of which each is a file until all are there."""
    path = index_path(dataset)
    if is_sound(path):
        return
    folder = path.with_suffix(".pieces")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(source, dataset.fingerprint, range(start, min(start + ROWS_PER_JOB, len(dataset))), folder)
            for start in range(0, len(dataset), ROWS_PER_JOB)]
    run(_read_piece, jobs, "reading labels", len(dataset))
    files = [_piece(folder, rows) for *_, rows, _ in jobs]
    with cached_file(path) as temporary:
        write_columns((_sound(file) for file in files), temporary)
        check_columns(_sound(temporary), len(dataset.classes), dataset.multi_label)
    for file in files:
        file.unlink()
    folder.rmdir()


def _piece(folder: Path, rows: range) -> Path:
    return folder / f"{rows.start}-{rows.stop}.arrow"


def _sound(file: Path) -> Columns:
    """Raises: UserError."""
    if (columns := read_columns(file)) is None:
        raise UserError(f"{file} is missing or damaged; remove it if it is there and start again")
    return columns


@functools.lru_cache(maxsize=1)
def _opened(source: Source) -> Dataset:
    return source.open()


def _read_piece(source: Source, fingerprint: str, rows: range, folder: Path) -> tuple[int]:
    """Raises: UserError when this machine sees other data."""
    if not is_sound(path := _piece(folder, rows)):
        dataset = _opened(source)
        if dataset.fingerprint != fingerprint:
            raise UserError(f"this worker sees the data {dataset.fingerprint}, but the data to index is {fingerprint}; "
                            "expected the same files at the same place on all machines")
        ids, labels = zip(*map(dataset.labels, rows), strict=True)
        encoded = pa.array([id_.encode(errors="surrogateescape") for id_ in ids], pa.large_binary())
        with cached_file(path) as temporary:
            write_columns([with_keys(encoded, Ragged.of(np.asarray(row, np.int32) for row in labels))], temporary)
    return (len(rows),)

