"""Times the same training step made by different libraries, interleaved in one run.

Each library has a process of its own that computes only while the others wait; its first two steps are not counted. A
step ends when its loss is on the host.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Step = Callable[[], float]
"""Takes one step and returns its loss."""


def main(doc: str, libraries: Mapping[str, Callable[[int, int], Step]], images: int, side: int) -> None:
    """The command line of a benchmark.

    Args:
      doc: docstring of the benchmark.
      libraries: functions from the batch size and the side of the images in pixels to a step. The first one is
        compared with all others; names that begin with "torch" run in the Python of ``--torch-python``.
      images: default batch size.
      side: default side in pixels.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=images, help="batch size")
    parser.add_argument("--side", type=int, default=side, help="pixels")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--before-torch", default="", help="a module to import before torchvision")
    parser.add_argument("--only", choices=[*libraries], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        if options.only.startswith("torch") and options.before_torch:
            __import__(options.before_torch)
        return work(libraries[options.only](options.images, options.side))

    pythons = {name: options.torch_python if name.startswith("torch") else sys.executable for name in libraries}
    times = measure(pythons, sys.argv[1:], options.turns)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        print(f"{name}: median {medians[name]:.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), "
              f"{options.images / medians[name]:.1f} images/s")
    first, *others = medians
    for name in others:
        print(f"speed of {first} relative to {name}: {medians[name] / medians[first]:.2f}")


def measure(pythons: Mapping[str, str], arguments: Sequence[str], turns: int, quiet: bool = False
            ) -> dict[str, list[float]]:
    """Seconds of each step in each turn, interleaved.

    Args:
      pythons: which Python makes each step; it runs this benchmark again with ``--only NAME``, which must call `work`.
      arguments: further ones of the command line.
      quiet: print nothing.
    """
    benchmark = Path(sys.argv[0]).resolve()
    repository = os.pathsep.join(filter(None, (str(benchmark.parent.parent), os.environ.get("PYTHONPATH"))))
    # All of them share the device's memory, most of which JAX would reserve for itself.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, "PYTHONPATH": repository}
    processes = {name: subprocess.Popen([python, str(benchmark), "--only", name, *arguments], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
                 for name, python in pythons.items()}

    def time_step(name: str) -> float:
        print(file=processes[name].stdin, flush=True)
        seconds = processes[name].stdout.readline()
        if not seconds:
            raise SystemExit(f"{name} ended with exit code {processes[name].wait()}")
        return float(seconds)

    for name in processes:
        for _ in range(2):
            time_step(name)
    times = {name: [] for name in processes}
    for turn in range(turns):
        for name, seconds in times.items():
            seconds.append(time_step(name))
        if not quiet:
            print(f"turn {turn + 1}: " + ", ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in times.items()))
    for process in processes.values():
        process.stdin.close()
    return times


def work(step: Step) -> None:
    """Take a step per line of input and answer with its seconds."""
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print(time.perf_counter() - begin, flush=True)
