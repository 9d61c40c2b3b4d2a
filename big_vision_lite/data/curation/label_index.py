"""Ids and labels of a whole dataset without its images: made by one scan, cached as an Arrow file, memory-mapped.

The file ends in its CRC-32C, verified at 3 GB/s when it is opened; a damaged one is made again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa

from big_vision_lite.data.ragged import Ragged, id_key
from big_vision_lite.data.source import Dataset
from big_vision_lite.data.sources.tfds import TfdsDataset
from big_vision_lite.errors import UserError, writing
from big_vision_lite.system.cache import cache_dir, cached_file
from big_vision_lite.system.cores import usable_cores

FORMAT = 3
CHUNK = 1024
"""Examples that a thread reads at a time."""
CHECKSUM_BYTES = 4


@dataclasses.dataclass(eq=False)
class LabelIndex:
    """What curation and manifests read: some 30 bytes per example and the ids themselves."""

    labels: Ragged
    keys: np.ndarray
    """uint64 ``[n]``: `ragged.id_key` of each id."""
    ids: pa.LargeBinaryArray
    """UTF-8, with file names' undecodable bytes as they are."""

    def id(self, index: int) -> str:
        return self.ids[index].as_py().decode(errors="surrogateescape")


def label_index(dataset: Dataset, beside: bool = False) -> LabelIndex:
    """The index of a dataset: read from the cache or, if it was prepared, from the folder of its data; or made by
    reading every id and label once.

    Args:
      beside: write it into the folder of the data, if it was prepared, not into the cache.

    Raises:
      UserError: two examples have the same id, or a label is not one of the classes.
    """
    name = f"{dataset.fingerprint.replace('/', '_')}-{FORMAT}.arrow"
    folders = [cache_dir(), *([dataset.folder] if isinstance(dataset, TfdsDataset) else [])]
    places = [Path(folder, "label_index", name) for folder in folders]
    for path in places:
        if (index := _read(path, len(dataset))) is not None:
            return index
    index = _scan(dataset)
    place = places[-1] if beside else places[0]
    with writing(place, "make room there") if beside else contextlib.suppress(OSError), cached_file(place) as temporary:
        _write(index, temporary)
    return index


def _scan(dataset: Dataset) -> LabelIndex:
    from rich.console import Console
    from rich.progress import track

    def read(chunk: range) -> tuple[pa.LargeBinaryArray, np.ndarray, list[int], np.ndarray]:
        ids, rows = zip(*map(dataset.labels, chunk), strict=True)
        encoded = pa.array([id_.encode(errors="surrogateescape") for id_ in ids], pa.large_binary())
        keys = np.fromiter(map(id_key, ids), np.uint64, len(ids))
        return encoded, keys, [len(row) for row in rows], np.concatenate(rows).astype(np.int32)

    every = range(len(dataset))
    chunks = [every[start : start + CHUNK] for start in every[::CHUNK]]
    console = Console(stderr=True)
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
        parts = track(pool.map(read, chunks), "reading labels", len(chunks), console=console, transient=True,
                      disable=not console.is_terminal)
        ids, keys, counts, values = zip(*parts, strict=True)
    labels = Ragged(np.cumsum(np.concatenate(counts), dtype=np.int64), np.concatenate(values))
    index = LabelIndex(labels, np.concatenate(keys), pa.concat_arrays(ids))
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
    checksum = _checksum(pa.memory_map(str(path)).read_buffer())
    with open(path, "ab") as file:
        file.write(checksum)


def _read(path: Path, length: int) -> LabelIndex | None:
    """None if there is none of this length, or it is damaged."""
    if not path.is_file() or path.stat().st_size < CHECKSUM_BYTES:
        return None
    stored = pa.memory_map(str(path)).read_buffer()
    data, checksum = stored.slice(0, len(stored) - CHECKSUM_BYTES), stored.slice(len(stored) - CHECKSUM_BYTES)
    if checksum.to_pybytes() != _checksum(data):
        return None
    table = pa.ipc.open_file(data).get_batch(0)
    if len(table) != length:
        return None
    labels = table["labels"]
    return LabelIndex(Ragged(labels.offsets.to_numpy()[1:], labels.values.to_numpy()), table["key"].to_numpy(),
                      table["id"])


def _checksum(data: pa.Buffer) -> bytes:
    return google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "big")
