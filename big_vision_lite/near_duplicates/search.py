"""All pairs of 64-bit hashes that differ in few bits, without comparing all with all.

Hashes are cut into ``threshold // 2 + 1`` bands. Two hashes that differ in at most ``threshold`` bits differ in at most
one bit of some band, because two or more in each would exceed it (Norouzi et al., 2012, section 2). So it is enough to
compare, band by band, hashes whose bands are equal or differ in one bit: no pair is missed.

To spread the work over machines, each band's values are divided into parts by their first bits; see `parts_of`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MAX_PAIRS = 50
"""Pairs of one image that a band reports, nearest first, so that a picture that occurs a million times does not make
10^12 pairs. Every image that has a pair keeps one."""
CHUNK = 1 << 17
"""Candidates that are compared at once."""


class Band(NamedTuple):
    """Bits ``shift`` to ``shift + width - 1`` of a hash."""

    shift: int
    width: int

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """uint64 ``[n]``, the band's value in hashes uint64 ``[n]``."""
        return (hashes >> np.uint64(self.shift)) & np.uint64((1 << self.width) - 1)


class Pairs(NamedTuple):
    """Pairs of rows, one from each side, whose hashes are near."""

    left: np.ndarray
    """int64 ``[n]``"""
    right: np.ndarray
    """int64 ``[n]``"""
    distance: np.ndarray
    """uint8 ``[n]``, the number of bits that differ"""


@functools.cache
def bands(threshold: int) -> tuple[Band, ...]:
    """64 bits in ``threshold // 2 + 1`` bands whose widths differ by at most one."""
    edges = np.linspace(0, 64, threshold // 2 + 2).astype(int).tolist()
    return tuple(Band(a, b - a) for a, b in itertools.pairwise(edges))


def parts_of(values: np.ndarray, width: int, bits: int) -> np.ndarray:
    """int64 ``[n, 1 + bits]``: the parts that can hold band values at most one bit away from ``values``.

    A part is the first ``bits`` of the band's ``width``. The first column is the part of the value itself.
    """
    if not bits:
        return np.zeros((len(values), 1), np.int64)
    return _one_bit_off(values >> np.uint64(width - bits), bits).astype(np.int64)


def _one_bit_off(values: np.ndarray, width: int) -> np.ndarray:
    """uint64 ``[n, 1 + width]``: the values, and those that differ in one of ``width`` bits."""
    return values[:, None] ^ np.array([0, *(1 << k for k in range(width))], np.uint64)


def near_pairs(left: np.ndarray, right: np.ndarray, number: int, threshold: int) -> Pairs:
    """Pairs that differ in at most ``threshold`` bits and are found in this band but in none before it.

    Args:
      left, right: uint64 ``[n]`` and ``[m]``. Memory grows with n + m.
      number: of the band.
      threshold: as in `bands`; far below 32, the typical distance between hashes of different images.
    """
    all_bands = bands(threshold)
    band = all_bands[number]
    values = band.of(left)
    order = np.argsort(values, kind="stable")
    values = values[order]
    probes = _one_bit_off(band.of(right), band.width)
    crowded = len(left) >= 8 << band.width
    search = _by_value if crowded else _by_row
    chunks = [limited(_not_in_earlier(left, right, pairs, all_bands[:number]))
              for pairs in search(left, right, order, values, probes, threshold)]
    if not chunks:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    return limited(Pairs(*(np.concatenate(columns) for columns in zip(*chunks, strict=True))))


def _by_value(left: np.ndarray, right: np.ndarray, order: np.ndarray, values: np.ndarray, probes: np.ndarray,
              threshold: int) -> Iterator[Pairs]:
    """Every left with every right of one band value after another: needs no gathering, for bands that many share."""
    by_probe = np.argsort(probes, axis=None, kind="stable")
    rows, sorted_probes = by_probe // probes.shape[1], probes.ravel()[by_probe]
    for value in np.unique(values):
        lefts = order[slice(*np.searchsorted(values, [value, value + np.uint64(1)]))]
        rights = rows[slice(*np.searchsorted(sorted_probes, [value, value + np.uint64(1)]))]
        step = max(CHUNK // max(len(rights), 1), 1)
        for start in range(0, len(lefts) if len(rights) else 0, step):
            chunk = lefts[start : start + step]
            distance = np.bitwise_count(left[chunk, None] ^ right[rights])
            near = np.flatnonzero(distance <= threshold)  # much faster in one dimension than in two
            if len(near):
                i, j = np.divmod(near, len(rights))
                yield Pairs(chunk[i], rights[j], distance[i, j])


def _by_row(left: np.ndarray, right: np.ndarray, order: np.ndarray, values: np.ndarray, probes: np.ndarray,
            threshold: int) -> Iterator[Pairs]:
    """Gathers the candidates of many rights at once."""
    first = np.searchsorted(values, probes.ravel(), "left")
    count = np.searchsorted(values, probes.ravel(), "right") - first
    row = np.repeat(np.arange(len(right)), probes.shape[1])
    hit = count > 0
    first, count, row = first[hit], count[hit], row[hit]
    ends = np.cumsum(count)
    start = 0
    while start < len(count):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + CHUNK, "right")), start + 1)
        c = count[start:stop]
        at = np.arange(c.sum()) - np.repeat(np.cumsum(c) - c, c) + np.repeat(first[start:stop], c)
        i, j = order[at], np.repeat(row[start:stop], c)
        distance = np.bitwise_count(left[i] ^ right[j])
        near = distance <= threshold
        yield Pairs(i[near], j[near], distance[near])
        start = stop


def _not_in_earlier(left: np.ndarray, right: np.ndarray, pairs: Pairs, earlier: tuple[Band, ...]) -> Pairs:
    """The pairs that no earlier band finds, so that each is reported once without comparing results of bands."""
    new = np.ones(len(pairs.left), np.bool_)
    differing = left[pairs.left] ^ right[pairs.right]
    for band in earlier:
        new &= np.bitwise_count(band.of(differing)) > 1
    return Pairs(*(column[new] for column in pairs))


def limited(pairs: Pairs, limit: int = MAX_PAIRS) -> Pairs:
    """The pairs that are among the ``limit`` nearest of one of their images."""
    if len(pairs.left) <= limit:
        return pairs
    among_nearest = np.zeros(len(pairs.left), np.bool_)
    for side, other in ((pairs.left, pairs.right), (pairs.right, pairs.left)):
        order = np.lexsort((other, pairs.distance, side))
        ordered = side[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        among_nearest[order[rank < limit]] = True
    return Pairs(*(column[among_nearest] for column in pairs))
