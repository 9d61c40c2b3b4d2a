"""When labels are read from the data itself: at once where that is quick, else only by `bvl data index`.

A run of many machines that lacks an index would otherwise begin with hours of reading on each of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from big_vision_lite.errors import UserError
from big_vision_lite.system.cache import cache_dir, shared_dir

MAX_EXAMPLES = 4_000_000
"""Examples that are read one by one without asking. This, and the bytes below, take minutes."""
MAX_CSV_BYTES = 1 << 32
MAX_TAR_BYTES = 1 << 40

_indexing: list[bool] = []  # not empty within `indexing`


@contextlib.contextmanager
def indexing() -> Iterator[None]:
    """Within it, scans may be of any size, in all threads of this process."""
    _indexing.append(True)
    try:
        yield
    finally:
        _indexing.pop()


def is_indexing() -> bool:
    """Whether this is within `indexing`."""
    return bool(_indexing)


def check_scan(data: str, size: int, most: int, unit: str) -> None:
    """Whether data without an index may be scanned now.

    Raises:
      UserError: it is large, and this is not `bvl data index`.
    """
    if size > most and not is_indexing():
        places = " or ".join(map(str, filter(None, (shared_dir(), cache_dir()))))
        raise UserError(f"{data} has no index in {places}, or has changed since it was indexed, and {size:,} {unit} "
                        "would have to be read; index it once with `bvl data index SOURCE --out FOLDER`, and set "
                        "BVL_SHARED=FOLDER on all machines")
