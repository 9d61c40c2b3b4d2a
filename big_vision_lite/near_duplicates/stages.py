"""The Beam stages of a near-duplicate search: hash ranges of images, search parts of the hashes, compare pixels.

Datasets are numbered: 0 is the training set, 1 and up are those that it is compared with. Machines exchange only hashes
and indices, never images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import apache_beam as beam
import numpy as np

from big_vision_lite.data.source import Dataset
from big_vision_lite.near_duplicates import correlation, hashing, search

BLOCK = 512
"""Images that are hashed at a time."""


@runtime_checkable
class Openable(Protocol):
    """A `Source`, an `Input` with its curation, or anything else that can be pickled and opens a `Dataset`."""

    def open(self) -> Dataset: ...


Embed = Callable[[np.ndarray], np.ndarray]
"""uint8 ``[n, height, width, 3]`` to float ``[n, dimensions]``."""

Hashed = tuple[str, np.ndarray, np.ndarray]
"""The side ("train", "upright" or "mirrored"), hashes uint64 ``[n]``, and the images' indices int64 ``[n]``."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What every machine must know. It is pickled, so it holds unopened sources."""

    key: str
    """Distinguishes this search from others in the same process."""
    sources: tuple[Openable | Dataset, ...]
    within: tuple[bool, ...]
    """Whether each source is the training set itself; unused for number 0."""
    threshold: int
    part_bits: int
    """Each band is divided into 2 to this power parts."""
    min_correlation: float | None
    embed: Embed | None
    max_embedding_distance: float
    embed_size: int

    def dataset(self, number: int) -> Dataset:
        """An opened source: once per process, because opening may list millions of files."""
        source = self.sources[number]
        if isinstance(source, Dataset):
            return source
        with _opening:
            if (self.key, number) not in _opened:
                _opened[self.key, number] = source.open()
            return _opened[self.key, number]


_opened: dict[tuple[str, int], Dataset] = {}
_opening = threading.Lock()


@contextlib.contextmanager
def already_open(key: str, opened: Sequence[Dataset]) -> Iterator[None]:
    """Within it, threads of this process use these datasets for the task with that key."""
    added = {(key, number): dataset for number, dataset in enumerate(opened)}
    _opened.update(added)
    try:
        yield
    finally:
        for entry in added:
            del _opened[entry]


class Hash(beam.DoFn):
    """(number, start, stop) of a dataset to ((other, band, part), hashes), and reports of skipped images."""

    def __init__(self, task: Task):
        self.task = task

    def process(self, job: tuple[int, int, int]) -> Iterator[Any]:
        number, start, stop = job
        indices = np.arange(start, stop)
        grey, errors = hashing.pixels(self.task.dataset(number).read(indices.tolist()), hashing.SIDE, grey=True)
        plain = hashing.is_plain(grey)
        bad = np.array([error is not None for error in errors])
        for error in filter(None, errors):
            yield beam.pvalue.TaggedOutput("reports", json.dumps(
                {"source": number, "id": error.example_id, "reason": error.reason}))
        if count := int((plain & ~bad).sum()):
            yield beam.pvalue.TaggedOutput("reports", json.dumps({"source": number, "plain": count}))
        usable = ~plain & ~bad
        hashes, mirrored = hashing.perceptual_hash(grey[usable])
        indices = indices[usable]
        others = range(1, len(self.task.sources))
        if number == 0:
            for other in others:
                yield from self._parts(other, "train", hashes, indices, spread=False)
        for other in others if number == 0 else [number]:
            if number or self.task.within[other]:
                yield from self._parts(other, "upright", hashes, indices, spread=True)
                yield from self._parts(other, "mirrored", mirrored, indices, spread=True)

    def _parts(self, other: int, side: str, hashes: np.ndarray, indices: np.ndarray, spread: bool) -> Iterator[Any]:
        """The hashes of every part of each band; with ``spread`` they also go to parts that are one bit away."""
        for k, band in enumerate(search.bands(self.task.threshold)):
            parts = search.parts_of(band.of(hashes), band.width, min(self.task.part_bits, band.width))
            parts = parts if spread else parts[:, :1]
            for part in np.unique(parts).tolist():
                rows = (parts == part).any(axis=1)
                yield (other, k, part), (side, hashes[rows], indices[rows])


class Search(beam.DoFn):
    """All hashes of one part to candidates, grouped by blocks of the training set: ((other, block), candidates)."""

    def __init__(self, task: Task):
        self.task = task

    def process(self, group: tuple[tuple[int, int, int], Iterable[Hashed]]) -> Iterator[Any]:
        (other, band, _), blocks = group
        sides: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for side, hashes, indices in blocks:
            sides.setdefault(side, []).append((hashes, indices))
        joined = {side: tuple(map(np.concatenate, zip(*parts, strict=True))) for side, parts in sides.items()}
        if "train" not in joined:
            return
        hashes, train = joined["train"]
        for flipped, side in enumerate(("upright", "mirrored")):
            if side not in joined:
                continue
            other_hashes, against = joined[side]
            left, right, distance = search.near_pairs(hashes, other_hashes, band, self.task.threshold)
            pairs = np.stack([train[left], against[right], distance.astype(np.int64), np.full(len(left), flipped)], 1)
            if self.task.within[other]:
                pairs = pairs[pairs[:, 1] < pairs[:, 0]]  # the first of two stays
            pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
            block = pairs[:, 0] // BLOCK
            for rows in np.split(pairs, np.flatnonzero(np.diff(block)) + 1):
                if len(rows):
                    yield (other, int(rows[0, 0]) // BLOCK), rows


class Compare(beam.DoFn):
    """Candidates of one block of the training set to the pairs whose pixels agree, as lines of JSON."""

    def __init__(self, task: Task):
        self.task = task

    def process(self, group: tuple[tuple[int, int], Iterable[np.ndarray]]) -> Iterator[str]:
        (other, _), candidates = group
        pairs = np.concatenate(list(candidates))
        pairs = pairs[np.lexsort(pairs.T[::-1])]
        best: dict[tuple[int, int], dict[str, Any]] = {}
        for start in range(0, len(pairs), BLOCK):
            for line in self._confirmed(other, pairs[start : start + BLOCK]):
                key = line["train_index"], line["against_index"]
                if key not in best or _doubt(line) < _doubt(best[key]):  # its mirror image may be near, too
                    best[key] = line
        yield from map(json.dumps, best.values())

    def _confirmed(self, other: int, pairs: np.ndarray) -> Iterator[dict[str, Any]]:
        """Those of the pairs int64 ``[n, 4]`` (the two indices, distance, mirrored or not) whose pixels agree."""
        task = self.task
        numbers, flipped = (0, other), pairs[:, 3] == 1
        correlated = embedded = np.zeros(len(pairs))
        agree = np.ones(len(pairs), np.bool_)
        if task.min_correlation is not None:
            train, against = (self._thumbnails(n, pairs[:, k]) for k, n in enumerate(numbers))
            against[flipped] = against[flipped, :, ::-1]
            correlated = correlation.correlation(train, against, task.min_correlation)
            agree = correlated >= task.min_correlation
        if task.embed is not None and agree.any():
            pairs, flipped, correlated = pairs[agree], flipped[agree], correlated[agree]
            train, against = (self._embedded(n, pairs[:, k], flipped & (k == 1)) for k, n in enumerate(numbers))
            embedded = 1 - (train * against).sum(axis=1)
            agree = embedded <= task.max_embedding_distance
        for row in np.flatnonzero(agree):
            i, j, distance, _ = pairs[row].tolist()
            line = {"source": other, "train_index": i, "train_id": task.dataset(0).labels(i)[0], "against_index": j,
                    "against_id": task.dataset(other).labels(j)[0], "distance": distance,
                    "flipped": bool(flipped[row])}
            if task.min_correlation is not None:
                line["correlation"] = round(float(correlated[row]), 4)
            if task.embed is not None:
                line["embedding_distance"] = round(float(embedded[row]), 4)
            yield line

    def _thumbnails(self, number: int, indices: np.ndarray) -> np.ndarray:
        """uint8 ``[n, 64, 64]``, grey; each image is read once, however many pairs it is in."""
        unique, row = np.unique(indices, return_inverse=True)
        examples = self.task.dataset(number).read(unique.tolist())
        return hashing.pixels(examples, correlation.SIDE, grey=True)[0][row]

    def _embedded(self, number: int, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        """float ``[n, d]`` with norm 1."""
        unique, row = np.unique(np.stack([indices, flipped], 1), axis=0, return_inverse=True)
        images = hashing.pixels(self.task.dataset(number).read(unique[:, 0].tolist()), self.task.embed_size,
                                grey=False)[0]
        mirror = unique[:, 1] == 1
        images[mirror] = images[mirror, :, ::-1]
        embedded = np.asarray(self.task.embed(images), np.float64)
        return (embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12))[row.ravel()]


def _doubt(line: dict[str, Any]) -> tuple[float, float, int]:
    """The larger, the less two images agree."""
    return line.get("embedding_distance", 0.0), -line.get("correlation", 0.0), line["distance"]


def index_ranges(sizes: Iterable[int]) -> list[tuple[int, int, int]]:
    """(number, start, stop) of every block of every dataset."""
    return [(number, start, min(start + BLOCK, size))
            for number, size in enumerate(sizes) for start in range(0, size, BLOCK)]
