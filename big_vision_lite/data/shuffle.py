"""The endless shuffled stream of a dataset's indices, as Grain makes it, many positions at a time."""

from __future__ import annotations

import numpy as np


class ShuffledStream:
    """The stream of ``grain.MapDataset.range(length).seed(seed).shuffle().repeat()``.

    Grain's own function of an index is called directly, which takes a third of the time of its datasets. How they seed
    it is checked against them; where that has changed, they are asked.
    """

    def __init__(self, length: int, seed: int):
        import grain

        self._length, self._shuffle = length, getattr(grain.experimental, "index_shuffle", None)
        self._seed = int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])
        self._grain = grain.MapDataset.range(length).seed(seed).shuffle().repeat()
        probes = range(0, 3 * length + 1, max(length // 2, 1))
        expected = [self._grain[position] for position in probes]
        self._direct = self._shuffle is not None and self._shuffled(probes) == expected

    def __call__(self, positions: range) -> np.ndarray:
        """The indices at these positions: int64 ``[k]``."""
        indices = self._shuffled(positions) if self._direct else [self._grain[position] for position in positions]
        return np.array(indices, np.int64)

    def _shuffled(self, positions: range) -> list[int]:
        length, seed, shuffle = self._length, self._seed, self._shuffle
        return [shuffle(position % length, length - 1, (seed + position // length) % 2**32, 4)
                for position in positions]
