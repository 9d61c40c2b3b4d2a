"""Seconds that each command's help takes, against Python doing nothing. The aim is under 0.5 s each.

    python benchmarks/help.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from big_vision_lite.cli import COMMANDS

REPEAT = 5
LIMIT = 0.5


def seconds(*arguments: str) -> float:
    """Median time of a Python process."""
    times = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    print(f"{seconds('-c', 'pass'):.2f} s  python -c pass")
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    for name in ("", *sorted(groups), *COMMANDS):
        took = seconds("-m", "big_vision_lite", *name.split(), "--help")
        print(f"{took:.2f} s  bvl {name} --help" + f"   over {LIMIT} s" * (took > LIMIT))


if __name__ == "__main__":
    main()
