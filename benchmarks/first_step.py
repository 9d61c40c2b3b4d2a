"""Cost of the first step of ResNet-50 and of Faster R-CNN with R50-FPN: cold, and with the cache of compiled programs.

    python benchmarks/first_step.py
"""

from __future__ import annotations

import dataclasses
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

from experiments import Network, line, main, spread, train, write_config, write_measurements

from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the first step, cold and with the cache of compiled programs."""

    classification: Network = Network(pixels=64, batch_size=32)
    detection: Network = Network(pixels=320, batch_size=2, task="detection")
    rounds: int = 1
    folder: Path | None = None
    """Folder for the runs; by default that for temporary files."""
    out: Path | None = None
    """JSON file for all measurements."""


def benchmark(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all measurements, in seconds.

    Each run is ``bvl train`` for one step in a process of its own: cold with an empty cache, then with the one that it
    left. Wall time counts from when the process has read its config to the end of the first step, CPU time over the
    whole process: also imports, and saving the only checkpoint.

    Raises:
      UserError: fewer than one round, or a run that fails.
    """
    if options.rounds < 1:
        raise UserError(f"rounds={options.rounds}; expected at least one")
    result = {}
    for network in (options.classification, options.detection):
        times = {(kind, clock): [] for kind in ("cold", "cached") for clock in ("wall", "CPU")}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_first_step") as name:
                folder = Path(name)
                config = write_config(folder / "config.py", network, steps=1)
                for kind in ("cold", "cached"):
                    before = _children()
                    train(config, folder / kind, folder / "compiled")
                    times[kind, "CPU"].append(_children() - before)
                    run = json.loads((folder / kind / "run.json").read_text())
                    times[kind, "wall"].append(run["seconds_to_first_step"])
        result[network.task] = {f"{kind} {clock}": spread(values) for (kind, clock), values in times.items()}
        print(f"{network.task}, ResNet-{network.depth}, {network.batch_size} images of {network.pixels} pixels")
        for name, values in result[network.task].items():
            print(line(f"  first step, {name} time", values, "s"))
    return write_measurements(options.out, result)


def _children() -> float:
    """CPU seconds of all processes that have been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(benchmark, Options)
