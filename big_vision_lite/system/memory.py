"""The memory of this machine."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int | None:
    """Bytes that processes may still take; None where the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
