"""Random streams of many images at once: those that NumPy's generators make for one image at a time.

The generator of an image is Philox4x64-10 (Salmon et al., 2011), a function of a key and a counter, so that one NumPy
operation computes a number of each stream.
"""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Streams:
    """Stream i has the numbers of ``np.random.Generator(np.random.Philox(key=(seed, positions[i])))``.

    Args:
      positions: int64 ``[b]``.
    """

    def __init__(self, seed: int, positions: np.ndarray):
        keys = np.asarray(positions, np.int64).astype(np.uint64)
        self._keys = np.full_like(keys, seed), keys
        self._counter, self._words = 0, list[np.ndarray]()

    def random(self) -> np.ndarray:
        """float64 ``[b]`` in [0, 1): the next number of each stream."""
        return (self._word() >> np.uint64(11)) * 2.0**-53

    def key(self) -> np.ndarray:
        """uint32 ``[b, 2]``, as ``integers(0, 2**32, 2, np.uint32)`` draws them for one stream."""
        word = self._word()
        return np.stack([word & _LOW, word >> _HALF], 1).astype(np.uint32)

    def _word(self) -> np.ndarray:
        """The next 64 bits of each stream: uint64 ``[b]``."""
        if not self._words:
            self._counter += 1
            self._words = self._block()[::-1]
        return self._words.pop()

    def _block(self) -> list[np.ndarray]:
        """The four words that Philox makes of the counter."""
        key_a, key_b = self._keys
        zero = np.zeros_like(key_a)
        a, b, c, d = zero + np.uint64(self._counter), zero, zero, zero
        for _ in range(10):
            (high_a, low_a), (high_c, low_c) = _product(_MULTIPLIERS[0], a), _product(_MULTIPLIERS[1], c)
            a, b, c, d = high_c ^ b ^ key_a, low_c, high_a ^ d ^ key_b, low_a
            key_a, key_b = key_a + _WEYL[0], key_b + _WEYL[1]
        return [a, b, c, d]


def _product(factor: np.uint64, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and lower 64 bits of the 128-bit products with uint64 ``[b]``."""
    factor_high, factor_low = factor >> _HALF, factor & _LOW
    high, low = values >> _HALF, values & _LOW
    middle = factor_high * low + ((factor_low * low) >> _HALF)  # cannot overflow: (2^32 - 1)^2 + 2^32 - 1 < 2^64
    carry = factor_low * high + (middle & _LOW)
    return factor_high * high + (middle >> _HALF) + (carry >> _HALF), factor * values


Draws = np.random.Generator | Streams
"""What random choices are drawn from: about one image, or about each of a batch."""
