"""Times the same training step made by different libraries, by turns in one run.

Each contender is a process of its own that computes only while the others wait; its first two steps are not counted. A
step ends when its loss is on the host.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Step = Callable[[], float]
"""Takes one step and returns its loss."""


def main(doc: str, contenders: Mapping[str, Callable[[int, int], Step]], images: int, side: int) -> None:
    """The command line of a benchmark.

    Args:
      doc: that of the benchmark's module.
      contenders: what makes a step, from the number of images and their pixels a side. The first one's seconds are set
        against all others'; names that begin with "torch" run in the Python of ``--torch-python``.
      images: in a batch, unless the command line says otherwise.
      side: pixels, likewise.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=images, help="in a batch")
    parser.add_argument("--side", type=int, default=side, help="pixels")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--before-torch", default="", help="a module to import before torchvision")
    parser.add_argument("--only", choices=[*contenders], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        if asked.only.startswith("torch") and asked.before_torch:
            __import__(asked.before_torch)
        return _work(contenders[asked.only](asked.images, asked.side))

    benchmark = Path(sys.argv[0]).resolve()
    repository = os.pathsep.join(filter(None, (str(benchmark.parent.parent), os.environ.get("PYTHONPATH"))))
    # All of them lie in the device's memory at once, of which JAX would take most for itself.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, "PYTHONPATH": repository}
    sides = {}
    for name in contenders:
        python = asked.torch_python if name.startswith("torch") else sys.executable
        sides[name] = subprocess.Popen([python, str(benchmark), "--only", name, *sys.argv[1:]], text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def seconds(name: str) -> float:
        print(file=sides[name].stdin, flush=True)
        told = sides[name].stdout.readline()
        if not told:
            raise SystemExit(f"{name} ended, with exit code {sides[name].wait()}")
        return float(told)

    for name in sides:
        for _ in range(2):
            seconds(name)
    times = {name: [] for name in sides}
    for turn in range(asked.turns):
        for name, found in times.items():
            found.append(seconds(name))
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {found[-1]:.3f} s" for name, found in times.items()))
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, found in times.items():
        print(f"{name}: median {medians[name]:.3f} s ({min(found):.3f} to {max(found):.3f}), "
              f"{asked.images / medians[name]:.1f} images/s")
        sides[name].stdin.close()
    first, *others = medians
    for name in others:
        print(f"steps a second, {first} against {name}: {medians[name] / medians[first]:.2f}")


def _work(step: Step) -> None:
    """Take a step for each line of input and answer with its seconds."""
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print(time.perf_counter() - begin, flush=True)
