"""Lists of labels for many examples in two arrays, and the arithmetic on them that curation is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Ragged(NamedTuple):
    """Row i holds ``values[ends[i - 1]:ends[i]]``."""

    ends: np.ndarray
    """int64 ``[n]``"""
    values: np.ndarray
    """int32 ``[m]``; within a row sorted and without repeats"""

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        rows = [np.asarray(row, np.int32) for row in rows]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls(ends, np.concatenate(rows) if rows else np.zeros(0, np.int32))

    def counts(self) -> np.ndarray:
        """int64 ``[n]``: the length of each row."""
        return np.diff(self.ends, prepend=0)

    def row_of(self) -> np.ndarray:
        """int64 ``[m]``: the row of each value."""
        return np.repeat(np.arange(len(self.ends)), self.counts())

    def row(self, i: int) -> np.ndarray:
        return self.values[self.ends[i - 1] if i else 0 : self.ends[i]]

    def take(self, rows: np.ndarray) -> Ragged:
        """The given rows, in the given order."""
        ends = np.asarray(self.ends)
        stop = ends[rows]
        start = np.where(rows > 0, ends[rows - 1], 0)
        counts = stop - start
        new_ends = np.cumsum(counts)
        within = np.arange(new_ends[-1] if len(new_ends) else 0) - np.repeat(new_ends - counts, counts)
        return Ragged(new_ends, np.asarray(self.values[np.repeat(start, counts) + within]))


def collected(row_of: np.ndarray, values: np.ndarray, rows: int, classes: int) -> Ragged:
    """Pairs (row, value) in any order and with repeats, as rows that are sorted and without repeats.

    >>> rows = collected(np.array([1, 0, 1, 1]), np.array([4, 2, 3, 4]), rows=3, classes=5)
    >>> [rows.row(i).tolist() for i in range(3)]
    [[2], [3, 4], []]
    """
    pairs = np.unique(row_of * classes + values)
    row_of, values = np.divmod(pairs, classes)
    return Ragged(np.cumsum(np.bincount(row_of, minlength=rows)), values.astype(np.int32))


def key(id_: str) -> int:
    """64 bits that stand for an example's id. Every random choice about an example comes from them and a seed."""
    return int.from_bytes(hashlib.blake2b(id_.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def uniform(*parts: np.ndarray | np.integer | int) -> np.ndarray:
    """float64 in [0, 1), a fixed function of the integers given, which are broadcast. The bits are those of
    SplitMix64's finaliser (Steele et al., 2014) after each part."""
    return (mixed(*parts) >> np.uint64(11)) * 2.0**-53


def mixed(*parts: np.ndarray | np.integer | int) -> np.ndarray:
    """uint64: 64 well mixed bits for the integers given, which are broadcast."""
    state = np.zeros(1, np.uint64)  # an array, for numpy warns of a scalar that wraps around
    for part in parts:
        state = (state ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(30)
        state = state * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state = state * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state
