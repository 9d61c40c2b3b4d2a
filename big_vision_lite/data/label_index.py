"""Ids and labels of a whole source without its images: made by one scan, kept on disk, memory-mapped."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from pathlib import Path

import numpy as np

from big_vision_lite.data.cache import cache_dir, kept
from big_vision_lite.data.cores import usable_cores
from big_vision_lite.data.ragged import Ragged, key
from big_vision_lite.data.source import Records
from big_vision_lite.errors import UserError

FORMAT = 1
PIECE = 1024
"""Examples that a thread reads at a time."""


@dataclasses.dataclass(eq=False)
class LabelIndex:
    """What curation and manifests look at. Sizes for n examples: some 30 bytes each and the ids themselves."""

    labels: Ragged
    keys: np.ndarray
    """uint64 ``[n]``: `ragged.key` of each id."""
    id_ends: np.ndarray
    """int64 ``[n]``: where each id ends in ``id_bytes``."""
    id_bytes: np.ndarray
    """uint8: all ids, UTF-8, one after the other."""

    def __len__(self) -> int:
        return len(self.keys)

    def id(self, index: int) -> str:
        start = self.id_ends[index - 1] if index else 0
        return self.id_bytes[start : self.id_ends[index]].tobytes().decode(errors="surrogateescape")


def label_index(records: Records, beside: Path | None = None) -> LabelIndex:
    """The index of a source: read from ``beside`` or the cache, or made by reading every id and label once.

    Args:
      beside: a folder in which the index may lie, and is written when the folder is given.

    Raises:
      UserError: two examples have one id, or a label is not one of the classes.
    """
    name = f"{records.fingerprint.replace('/', '_')}-{FORMAT}"
    folder = beside or cache_dir() / "label_index"
    for place in dict.fromkeys((folder, cache_dir() / "label_index", records_folder(records))):
        if place is not None and (place / name / "index.json").is_file():
            return _read(place / name)
    index = _scan(records)
    with kept(folder / name) as made:
        _write(index, made)
    return index


def records_folder(records: Records) -> Path | None:
    """Where the index of a prepared data set lies beside its data."""
    folder = getattr(records, "folder", None)
    return Path(folder) / "label_index" if folder else None


def _scan(records: Records) -> LabelIndex:
    from rich.console import Console
    from rich.progress import Progress

    size, classes = len(records), len(records.classes)

    def read(start: int) -> tuple[list[bytes], list[np.ndarray]]:
        pairs = [records.labels(i) for i in range(start, min(start + PIECE, size))]
        return [id_.encode(errors="surrogateescape") for id_, _ in pairs], [labels for _, labels in pairs]

    id_bytes, id_lengths, counts, values, keys = [], [], [], [], []
    console = Console(stderr=True)
    threads = min(16, 2 * usable_cores())
    with (concurrent.futures.ThreadPoolExecutor(threads) as pool,
          Progress(console=console, transient=True, disable=not console.is_terminal) as progress):
        bar = progress.add_task("reading labels", total=size)
        starts = iter(range(0, size, PIECE))
        running = [pool.submit(read, start) for _, start in zip(range(2 * threads), starts, strict=False)]
        while running:  # pieces in order, a bounded number of them at a time
            ids, labels = running.pop(0).result()
            if (start := next(starts, None)) is not None:
                running.append(pool.submit(read, start))
            id_bytes.append(np.frombuffer(b"".join(ids), np.uint8))
            id_lengths.append([len(id_) for id_ in ids])
            counts.append([len(row) for row in labels])
            values.append(np.concatenate(labels).astype(np.int32))
            keys.append(np.fromiter((key(id_.decode(errors="surrogateescape")) for id_ in ids), np.uint64, len(ids)))
            progress.advance(bar, len(ids))
    index = LabelIndex(Ragged(np.cumsum(np.concatenate(counts), dtype=np.int64), np.concatenate(values)),
                       np.concatenate(keys), np.cumsum(np.concatenate(id_lengths), dtype=np.int64),
                       np.concatenate(id_bytes))
    _check(index, classes, records.multi_label)
    return index


def _check(index: LabelIndex, classes: int, multi_label: bool) -> None:
    wrong = np.flatnonzero((index.labels.values < 0) | (index.labels.values >= classes))
    if len(wrong):
        row = int(np.searchsorted(index.labels.ends, wrong[0], side="right"))
        raise UserError(f"example {index.id(row)!r} has label {index.labels.values[wrong[0]]}; expected 0 to "
                        f"{classes - 1}, for there are {classes} classes; {len(wrong)} labels are out of range")
    if not multi_label and (index.labels.counts() != 1).any():
        row = int(np.flatnonzero(index.labels.counts() != 1)[0])
        raise UserError(f"example {index.id(row)!r} has {len(index.labels.row(row))} labels in a source of one label "
                        "an image; give it one, or call the source multi_label")
    order = np.argsort(index.keys, kind="stable")
    for at in np.flatnonzero(np.diff(index.keys[order]) == 0):
        first, second = int(order[at]), int(order[at + 1])
        if index.id(first) == index.id(second):  # and not just equal in 64 bits
            raise UserError(f"examples {first} and {second} have the same id {index.id(first)!r}; ids must differ, for "
                            "curation and manifests go by them")


def _write(index: LabelIndex, folder: Path) -> None:
    folder.mkdir()
    for name, array in (("label_ends", index.labels.ends), ("labels", index.labels.values), ("keys", index.keys),
                        ("id_ends", index.id_ends), ("id_bytes", index.id_bytes)):
        np.save(folder / f"{name}.npy", array)
    (folder / "index.json").write_text(json.dumps({"format": FORMAT, "examples": len(index)}) + "\n")


def _read(folder: Path) -> LabelIndex:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
              for name in ("label_ends", "labels", "keys", "id_ends", "id_bytes")}
    return LabelIndex(Ragged(arrays["label_ends"], arrays["labels"]), arrays["keys"], arrays["id_ends"],
                      arrays["id_bytes"])
