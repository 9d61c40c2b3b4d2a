"""The CPU cores of this process."""

from __future__ import annotations

import os


def cores() -> list[int]:
    """Numbers of the cores that this process may run on: taskset and batch systems may allow it only some."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def usable_cores() -> int:
    return len(cores())
