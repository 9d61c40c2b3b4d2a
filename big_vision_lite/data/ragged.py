"""Label lists of many examples in two arrays, and hashes of example ids: the arithmetic of curation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Ragged(NamedTuple):
    """Rows of different lengths: row i holds ``values[ends[i - 1]:ends[i]]``."""

    ends: np.ndarray
    """int64 ``[n]``"""
    values: np.ndarray
    """int32 ``[m]``; sorted and without repeats within a row"""

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray]) -> Ragged:
        rows = [np.asarray(row, np.int32) for row in rows]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls(ends, np.concatenate(rows) if rows else np.zeros(0, np.int32))

    @classmethod
    def from_pairs(cls, rows: np.ndarray, values: np.ndarray, length: int, classes: int) -> Ragged:
        """``length`` rows, sorted and without repeats, of pairs (row, value below ``classes``) in any order.

        >>> ragged = Ragged.from_pairs(np.array([1, 0, 1, 1]), np.array([4, 2, 3, 4]), length=3, classes=5)
        >>> [ragged.row(i).tolist() for i in range(3)]
        [[2], [3, 4], []]
        """
        pairs = np.sort(rows * classes + values)  # np.unique hashes: five times as long
        rows, values = np.divmod(pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]], classes)
        return cls(np.cumsum(np.bincount(rows, minlength=length)), values.astype(np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts."""
        counts = np.concatenate([part.counts() for part in parts])
        return cls(np.cumsum(counts), np.concatenate([part.values for part in parts]))

    def counts(self) -> np.ndarray:
        """int64 ``[n]``: the length of each row."""
        return np.diff(self.ends, prepend=0)

    def rows(self) -> np.ndarray:
        """int64 ``[m]``: the row of each value."""
        return np.repeat(np.arange(len(self.ends)), self.counts())

    def row(self, i: int) -> np.ndarray:
        return self.values[self.ends[i - 1] if i else 0 : self.ends[i]]

    def where(self, mask: np.ndarray) -> Ragged:
        """The same rows with only the values at which bool ``[m]`` is True."""
        return Ragged(np.cumsum(np.bincount(self.rows()[mask], minlength=len(self.ends))), self.values[mask])

    def where_any(self, mask: np.ndarray) -> np.ndarray:
        """bool ``[n]``: which rows have a value v with ``mask[v]``."""
        return np.bincount(self.rows()[mask[self.values]], minlength=len(self.ends)) > 0

    def take(self, rows: np.ndarray) -> Ragged:
        """The given rows, in the given order."""
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        counts = self.ends[rows] - starts
        new_ends = np.cumsum(counts)
        within = np.arange(new_ends[-1] if len(new_ends) else 0) - np.repeat(new_ends - counts, counts)
        return Ragged(new_ends, self.values[np.repeat(starts, counts) + within])


def among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """bool, of the shape of ``values``: which of them are in ``ascending``.

    By binary search, because `np.isin` hashes, and takes 1 us for each (row, label) of a table of a million.
    """
    if not len(ascending):
        return np.zeros(values.shape, np.bool_)
    at = np.searchsorted(ascending, values)
    return ascending[np.minimum(at, len(ascending) - 1)] == values


def id_key(id_: str) -> int:
    """A 64-bit hash of an example's id. Every random choice about an example is a function of it and a seed."""
    return int.from_bytes(hashlib.blake2b(id_.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def uniform(*parts: np.ndarray | np.integer | int) -> np.ndarray:
    """float64 in [0, 1), a fixed function of the integers given, which are broadcast."""
    return (random_bits(*parts) >> np.uint64(11)) * 2.0**-53


def random_bits(*parts: np.ndarray | np.integer | int) -> np.ndarray:
    """uint64, a fixed function of the integers given, which are broadcast: SplitMix64's finaliser (Steele et al., 2014)
    after each of them."""
    state = np.zeros(1, np.uint64)  # an array, because numpy warns when a scalar wraps around
    for part in parts:
        state = (state ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(30)
        state = state * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state = state * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state
