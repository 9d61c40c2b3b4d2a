"""The CPU cores of this process."""

from __future__ import annotations

import os


def cores() -> list[int]:
    """The numbers of the cores that this process may use: taskset and batch systems can restrict them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def usable_cores() -> int:
    return len(cores())
