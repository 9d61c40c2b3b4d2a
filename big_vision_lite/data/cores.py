"""Which cores there are for this process."""

from __future__ import annotations

import os


def cores() -> list[int]:
    """Those that this process may run on: not those that taskset or a batch system keeps from it."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def usable_cores() -> int:
    """How many `cores`."""
    return len(cores())
