"""Ids and labels of a whole dataset without its images: made by one scan, cached as an Arrow file, memory-mapped."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from big_vision_lite.data.ragged import Ragged, id_key
from big_vision_lite.data.source import Dataset
from big_vision_lite.errors import UserError
from big_vision_lite.system.cache import cache_dir, cached_file
from big_vision_lite.system.cores import usable_cores

FORMAT = 2
CHUNK = 1024
"""Examples that a thread reads at a time."""


@dataclasses.dataclass(eq=False)
class LabelIndex:
    """What curation and manifests read: some 30 bytes per example and the ids themselves."""

    labels: Ragged
    keys: np.ndarray
    """uint64 ``[n]``: `ragged.id_key` of each id."""
    ids: pa.LargeBinaryArray
    """UTF-8, with file names' undecodable bytes as they are."""

    def __len__(self) -> int:
        return len(self.keys)

    def id(self, index: int) -> str:
        return self.ids[index].as_py().decode(errors="surrogateescape")


def label_index(dataset: Dataset, beside: Path | None = None) -> LabelIndex:
    """The index of a dataset: read from ``beside`` or the cache, or made by reading every id and label once.

    Args:
      beside: a folder that may hold the index; it is written there if the folder is given.

    Raises:
      UserError: two examples have the same id, or a label is not one of the classes.
    """
    name = f"{dataset.fingerprint.replace('/', '_')}-{FORMAT}.arrow"
    in_cache = cache_dir() / "label_index"
    folder = beside or in_cache
    for place in dict.fromkeys((folder, in_cache, _beside_data(dataset))):
        if place is not None and (place / name).is_file():
            return _read(place / name)
    index = _scan(dataset)
    with cached_file(folder / name) as temporary:
        _write(index, temporary)
    return index


def _beside_data(dataset: Dataset) -> Path | None:
    """Where the index of a prepared dataset lies, beside its data."""
    folder = getattr(dataset, "folder", None)
    return Path(folder) / "label_index" if folder else None


def _scan(dataset: Dataset) -> LabelIndex:
    from rich.console import Console
    from rich.progress import Progress

    size = len(dataset)

    def read(start: int) -> tuple[list[str], list[np.ndarray]]:
        pairs = [dataset.labels(i) for i in range(start, min(start + CHUNK, size))]
        return [id_ for id_, _ in pairs], [labels for _, labels in pairs]

    id_chunks, key_chunks, counts, values = [], [], [], []
    console = Console(stderr=True)
    threads = min(16, 2 * usable_cores())
    with (concurrent.futures.ThreadPoolExecutor(threads) as pool,
          Progress(console=console, transient=True, disable=not console.is_terminal) as progress):
        bar = progress.add_task("reading labels", total=size)
        starts = iter(range(0, size, CHUNK))
        running = [pool.submit(read, start) for _, start in zip(range(2 * threads), starts, strict=False)]
        while running:  # chunks in order, a bounded number of them at a time
            ids, labels = running.pop(0).result()
            if (start := next(starts, None)) is not None:
                running.append(pool.submit(read, start))
            id_chunks.append(pa.array([id_.encode(errors="surrogateescape") for id_ in ids], pa.large_binary()))
            key_chunks.append(np.fromiter(map(id_key, ids), np.uint64, len(ids)))
            counts.append([len(row) for row in labels])
            values.append(np.concatenate(labels).astype(np.int32))
            progress.advance(bar, len(ids))
    labels = Ragged(np.cumsum(np.concatenate(counts), dtype=np.int64), np.concatenate(values))
    index = LabelIndex(labels, np.concatenate(key_chunks), pa.concat_arrays(id_chunks))
    _check(index, len(dataset.classes), dataset.multi_label)
    return index


def _check(index: LabelIndex, classes: int, multi_label: bool) -> None:
    """Raises: UserError, as `label_index`."""
    out_of_range = np.flatnonzero((index.labels.values < 0) | (index.labels.values >= classes))
    if len(out_of_range):
        row = int(np.searchsorted(index.labels.ends, out_of_range[0], side="right"))
        raise UserError(f"example {index.id(row)!r} has label {index.labels.values[out_of_range[0]]}; expected 0 to "
                        f"{classes - 1}, because there are {classes} classes; {len(out_of_range)} labels are out of "
                        "range")
    counts = index.labels.counts()
    if not multi_label and (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise UserError(f"example {index.id(row)!r} has {counts[row]} labels in a source with one label per image; "
                        "give it one, or make the source multi_label")
    order = np.argsort(index.keys, kind="stable")
    for at in np.flatnonzero(np.diff(index.keys[order]) == 0):
        first, second = int(order[at]), int(order[at + 1])
        if index.id(first) == index.id(second):  # and not merely the same 64-bit key
            raise UserError(f"examples {first} and {second} have the same id {index.id(first)!r}; ids must differ, "
                            "because curation and manifests go by them")


def _write(index: LabelIndex, path: Path) -> None:
    offsets = np.concatenate(([0], index.labels.ends))
    labels = pa.LargeListArray.from_arrays(offsets, pa.array(index.labels.values))
    table = pa.RecordBatch.from_pydict({"id": index.ids, "key": index.keys, "labels": labels})
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write(table)


def _read(path: Path) -> LabelIndex:
    table = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    labels = table["labels"]
    return LabelIndex(Ragged(labels.offsets.to_numpy()[1:], labels.values.to_numpy()), table["key"].to_numpy(),
                      table["id"])
