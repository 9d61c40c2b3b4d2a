"""All pairs of 64-bit hashes that differ in few bits, without comparing each with each.

Hashes are cut into ``threshold // 2 + 1`` bands. Two that differ in at most ``threshold`` bits differ in at most one
bit of some band, for otherwise there were two or more in each (Norouzi et al., 2012, section 2). So it is enough to
look, band by band, at those with an equal band or one that differs by one bit: no pair is missed.

For many machines each band's values are also divided into parts by their first bits; see `parts_of`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MOST_PAIRS = 50
"""Pairs of one image that a band reports, nearest first, so that one picture which is there a million times does not
make 10^12 pairs. Every image that has a pair keeps one."""
CHUNK = 1 << 17
"""Candidates that are looked at at once."""


class Band(NamedTuple):
    """Bits ``shift`` to ``shift + width - 1`` of a hash."""

    shift: int
    width: int

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """uint64 ``[n]``, the band's value in hashes uint64 ``[n]``."""
        return (hashes >> np.uint64(self.shift)) & np.uint64((1 << self.width) - 1)


class Pairs(NamedTuple):
    """Rows of the two sides whose hashes are near."""

    left: np.ndarray
    """int64 ``[n]``"""
    right: np.ndarray
    """int64 ``[n]``"""
    distance: np.ndarray
    """uint8 ``[n]``, in how many bits they differ"""


@functools.cache
def bands(threshold: int) -> tuple[Band, ...]:
    """64 bits in ``threshold // 2 + 1`` bands whose widths differ by at most one."""
    edges = np.linspace(0, 64, threshold // 2 + 2).astype(int).tolist()
    return tuple(Band(a, b - a) for a, b in itertools.pairwise(edges))


def parts_of(values: np.ndarray, width: int, bits: int) -> np.ndarray:
    """int64 ``[n, 1 + bits]``: the parts in which band values that are at most one bit from ``values`` may lie.

    A part is the first ``bits`` of the band's ``width``. The first column is the part of the value itself.
    """
    if not bits:
        return np.zeros((len(values), 1), np.int64)
    return _one_bit_off(values >> np.uint64(width - bits), bits).astype(np.int64)


def _one_bit_off(values: np.ndarray, width: int) -> np.ndarray:
    """uint64 ``[n, 1 + width]``: the values, and those that differ in one of ``width`` bits."""
    return values[:, None] ^ np.array([0, *(1 << k for k in range(width))], np.uint64)


def near_pairs(left: np.ndarray, right: np.ndarray, number: int, threshold: int) -> Pairs:
    """Pairs that differ in at most ``threshold`` bits and are to be found in this band and in none before.

    Args:
      left, right: uint64 ``[n]`` and ``[m]``. Memory grows with n + m.
      number: of the band.
      threshold: as of `bands`; far below 32, about which hashes of unlike images differ.
    """
    all_bands = bands(threshold)
    band = all_bands[number]
    values = band.of(left)
    order = np.argsort(values, kind="stable")
    values = values[order]
    probes = _one_bit_off(band.of(right), band.width)
    crowded = len(left) >= 8 << band.width
    look = _by_value if crowded else _by_row
    found = [fewer(_first_found(left, right, pairs, all_bands[:number]))
             for pairs in look(left, right, order, values, probes, threshold)]
    if not found:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    return fewer(Pairs(*(np.concatenate(columns) for columns in zip(*found, strict=True))))


def _by_value(left: np.ndarray, right: np.ndarray, order: np.ndarray, values: np.ndarray, probes: np.ndarray,
              threshold: int) -> Iterator[Pairs]:
    """Every left with every right of one band value after another: without gathering, where many have the same."""
    by_probe = np.argsort(probes, axis=None, kind="stable")
    rows, sorted_probes = by_probe // probes.shape[1], probes.ravel()[by_probe]
    for value in np.unique(values):
        mine = order[slice(*np.searchsorted(values, [value, value + np.uint64(1)]))]
        theirs = rows[slice(*np.searchsorted(sorted_probes, [value, value + np.uint64(1)]))]
        step = max(CHUNK // max(len(theirs), 1), 1)
        for start in range(0, len(mine) if len(theirs) else 0, step):
            some = mine[start : start + step]
            distance = np.bitwise_count(left[some, None] ^ right[theirs])
            near = np.flatnonzero(distance <= threshold)  # of one dimension, for it is much faster than of two
            if len(near):
                i, j = np.divmod(near, len(theirs))
                yield Pairs(some[i], theirs[j], distance[i, j])


def _by_row(left: np.ndarray, right: np.ndarray, order: np.ndarray, values: np.ndarray, probes: np.ndarray,
            threshold: int) -> Iterator[Pairs]:
    """Candidates gathered one by one, many rights at once."""
    first = np.searchsorted(values, probes.ravel(), "left")
    count = np.searchsorted(values, probes.ravel(), "right") - first
    row = np.repeat(np.arange(len(right)), probes.shape[1])
    hit = count > 0
    first, count, row = first[hit], count[hit], row[hit]
    until = np.cumsum(count)
    start = 0
    while start < len(count):
        before = until[start - 1] if start else 0
        stop = max(int(np.searchsorted(until, before + CHUNK, "right")), start + 1)
        c = count[start:stop]
        at = np.arange(c.sum()) - np.repeat(np.cumsum(c) - c, c) + np.repeat(first[start:stop], c)
        yield _within(left, right, order[at], np.repeat(row[start:stop], c), threshold)
        start = stop


def _within(left: np.ndarray, right: np.ndarray, i: np.ndarray, j: np.ndarray, threshold: int) -> Pairs:
    distance = np.bitwise_count(left[i] ^ right[j])
    near = distance <= threshold
    return Pairs(i[near], j[near], distance[near])


def _first_found(left: np.ndarray, right: np.ndarray, pairs: Pairs, earlier: tuple[Band, ...]) -> Pairs:
    """The pairs that no earlier band has found: each is reported once, without a comparison over bands."""
    new = np.ones(len(pairs.left), np.bool_)
    differ = left[pairs.left] ^ right[pairs.right]
    for band in earlier:
        new &= np.bitwise_count(band.of(differ)) > 1
    return Pairs(*(column[new] for column in pairs))


def fewer(pairs: Pairs, most: int = MOST_PAIRS) -> Pairs:
    """The pairs that are among the ``most`` nearest of one of their images."""
    if len(pairs.left) <= most:
        return pairs
    kept = np.zeros(len(pairs.left), np.bool_)
    for side, other in ((pairs.left, pairs.right), (pairs.right, pairs.left)):
        order = np.lexsort((other, pairs.distance, side))
        ordered = side[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        kept[order[rank < most]] = True
    return Pairs(*(column[kept] for column in pairs))
