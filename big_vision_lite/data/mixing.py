"""The training stream of a dataset whose strata have given shares of it, as a pure function of the position.

Each stratum has its own endless shuffled stream. Positions are dealt out evenly: among the first p positions, the first
stratum has floor(p * share), the next has as much of those that are left, and so on, as Bresenham's line takes steps.
So every batch has all shares to within few images, and no state but the position is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from big_vision_lite.data.shuffle import ShuffledStream

_BITS = 30
"""Of a share: it is off by less than one image in a thousand million."""


class MixedStream:
    """Args:
    of: ``[n]``, the stratum of each example.
    shares: per stratum, relative to one another; 0 for strata without examples.
    """

    def __init__(self, of: np.ndarray, shares: Sequence[float], seed: int):
        present = [stratum for stratum, share in enumerate(shares) if share > 0]
        self._members = [np.flatnonzero(of == stratum) for stratum in present]
        seeds = [int(np.random.SeedSequence((seed, stratum, 2)).generate_state(1)[0]) for stratum in present]
        self._streams = [ShuffledStream(len(members), own) for members, own in zip(self._members, seeds, strict=True)]
        left = np.cumsum([shares[stratum] for stratum in reversed(present)])[::-1]  # to it and to those after it
        self._shares = [round(shares[stratum] / rest * 2**_BITS) for stratum, rest in zip(present, left, strict=True)]

    def __call__(self, positions: range) -> np.ndarray:
        """The indices at consecutive positions: int64 ``[k]``."""
        indices = np.zeros(len(positions), np.int64)
        slots, left = np.arange(len(positions)), np.asarray(positions, np.int64)
        for members, stream, share in zip(self._members, self._streams, self._shares, strict=True):
            before = _times(left, share)
            own = _times(left + 1, share) > before
            if own.any():
                first, last = before[own][[0, -1]].tolist()
                indices[slots[own]] = members[stream(range(first, last + 1))]
            slots, left = slots[~own], (left - before)[~own]
        return indices


def _times(positions: np.ndarray, share: int) -> np.ndarray:
    """floor(positions * share / 2**30), without overflow."""
    high, low = positions >> _BITS, positions & (2**_BITS - 1)
    return high * share + (low * share >> _BITS)
