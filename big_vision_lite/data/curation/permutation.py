"""A keyed permutation of 0 to n - 1 in constant memory, with any element in constant time; numpy's holds all n."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from big_vision_lite.data.ragged import random_bits

ROUNDS = 8
PIECE = 1 << 14
"""Positions that are computed at a time, in a core's cache."""


@dataclasses.dataclass(frozen=True)
class Permutation:
    """A Feistel network on pairs of numbers below the root of n, rounded up, applied until the result is below n (Black
    and Rogaway, "Ciphers with arbitrary finite domains", 2002).

    >>> shuffled = Permutation(10, seed=0)
    >>> shuffled(np.arange(10)).tolist()
    [6, 1, 5, 7, 2, 4, 3, 8, 9, 0]
    >>> shuffled(np.array([3])).tolist()  # any element alone
    [7]
    """

    length: int
    seed: int

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The elements at positions int64 ``[k]``: int64 ``[k]``."""
        side = np.uint64(max(2, math.isqrt(max(self.length - 1, 0)) + 1))
        keys = random_bits(self.seed, np.arange(ROUNDS))
        out = np.array(positions, np.int64).astype(np.uint64)
        for start in range(0, len(out), PIECE):
            self._permute(out[start : start + PIECE], side, keys)
        return out.astype(np.int64)

    def _permute(self, out: np.ndarray, side: np.uint64, keys: np.ndarray) -> None:
        """Replace positions by their elements."""
        todo = np.arange(len(out))
        while len(todo):
            left, right = np.divmod(out[todo], side)
            for key in keys:
                # The remainder of 32 random bits is uniform enough for sides of up to a million.
                left, right = right, (left + (random_bits(key, right) >> np.uint64(32))) % side
            out[todo] = left * side + right
            todo = todo[out[todo] >= self.length]
