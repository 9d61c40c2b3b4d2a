"""Orders of large curated datasets as files in the cache: made in one pass, then mapped by every process that needs
them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from big_vision_lite.data.columns import append_checksum, content_size, is_sound
from big_vision_lite.data.curation.permutation import Permutation
from big_vision_lite.system.cache import cached_array, cached_file, cached_path

FORMAT = 1
LARGE = 1 << 18
"""Examples of the source from which what is counted over all of them is stored."""
CHUNK = 1 << 20
"""Examples that are processed at a time in a pass over all of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """Which of the source's indices are used, and in which order: all, the first of a permutation, or a list."""

    length: int
    permutation: Permutation | None = None
    indices: np.ndarray | None = None
    path: Path | None = None
    """The file that the list is mapped from. Such an order pickles as its name."""

    @property
    def is_all(self) -> bool:
        return self.permutation is None and self.indices is None

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The source's indices at positions int64 ``[k]``: int64 ``[k]``."""
        if self.indices is not None:
            return np.asarray(self.indices[positions], np.int64)
        return self.permutation(positions) if self.permutation else positions

    def chunks(self) -> Iterator[np.ndarray]:
        """All indices, `CHUNK` at a time."""
        for start in range(0, max(self.length, 1), CHUNK):
            stop = min(start + CHUNK, self.length)
            if self.path is not None and self.path.is_file():  # read, so that its pages are no memory of this process
                kind = self.indices.dtype
                yield np.fromfile(self.path, kind, stop - start, offset=start * kind.itemsize).astype(np.int64)
            else:
                yield self(np.arange(start, stop))

    def __reduce__(self):
        if self.path is not None and self.path.is_file():
            return _mapped, (self.path, self.indices.dtype.str)
        return Order, (self.length, self.permutation, None if self.indices is None else np.array(self.indices))


def stored_order(name: str, total: int, chunks: Callable[[], Iterator[np.ndarray]]) -> Order:
    """The order of the indices that ``chunks`` gives; of a large source it is read from the cache, or made and stored.

    Args:
      name: identifies the source and all that was done with it.
      total: examples of the source.
    """
    if total < LARGE:
        indices = np.concatenate([*chunks()])
        return Order(len(indices), indices=indices)
    kind = np.dtype(np.uint32 if total <= 1 << 32 else np.int64)
    path = cached_path("orders", f"{name.replace('/', '_')}-{FORMAT}.{kind.name}")
    if is_sound(path):
        return _mapped(path, kind.str)
    with cached_file(path) as temporary:
        with open(temporary, "wb") as file:
            for indices in chunks():
                indices.astype(kind).tofile(file)
        append_checksum(temporary)
        order = _mapped(temporary, kind.str)  # which stays when the file is moved or removed
    return dataclasses.replace(order, path=path if is_sound(path) else None)


def _mapped(path: Path, kind: str) -> Order:
    """The order in a file that is known to be sound."""
    length = content_size(path.stat().st_size) // np.dtype(kind).itemsize
    indices = np.memmap(path, kind, "r", shape=(length,)) if length else np.zeros(0, kind)
    return Order(length, indices=indices, path=path)


def stored_counts(name: str, total: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is counted over a whole source; of a large one it is read from the cache, or made and stored."""
    if total < LARGE:
        return make()
    return cached_array(cached_path("orders", f"{name.replace('/', '_')}-{FORMAT}.npy"), make)
