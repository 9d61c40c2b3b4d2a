"""Images a second of two processes with a core each, beside one process with both cores."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from big_vision_lite.bench.experiments import Network, said, spread, train, write_config
from big_vision_lite.data.cores import cores
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure training by two processes of one core each, beside one process of two cores."""

    network: Network = Network(depth=10, width=0.5, pixels=32, batch_size=128, group=32)
    steps: int = 60
    """Of each run; the speed is that of the second half, the median over its lines of metrics."""
    log_every: int = 5
    rounds: int = 3
    folder: Path | None = None
    """Where the runs go; None: the folder for temporary files."""
    out: Path | None = None
    """JSON file for all figures."""


def bench_processes(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all figures; speeds are images a second.

    Both train the same global batches, by turns, each process pinned to its cores with a device a core.

    Raises:
      UserError: fewer than two cores, or a run that fails.
    """
    used = cores()[:2]
    if len(used) < 2:
        raise UserError("two processes are compared on two cores, and this process may use one")
    if options.rounds < 1 or options.steps < 4 * options.log_every:
        raise UserError(f"rounds={options.rounds}, steps={options.steps}; expected at least 1 round, and 4 times "
                        f"log_every={options.log_every}")
    speeds: dict[str, list[float]] = {"one": [], "two": []}
    ways = {"one": [used], "two": [[core] for core in used]}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_processes") as name:
        folder = Path(name)
        config = write_config(folder / "config.py", options.network, options.steps, options.steps, options.log_every,
                              images=1024)
        for number in range(options.rounds):
            for way, own in ways.items():
                run = folder / f"{way}{number}"
                train(config, run, own, folder / "compiled")
                speeds[way].append(_speed(run, options.steps))
    found = {"network": dataclasses.asdict(options.network), "one": spread(speeds["one"]), "two": spread(speeds["two"]),
             "ratio": spread([b / a for a, b in zip(speeds["one"], speeds["two"], strict=True)])}
    print(f"ResNet-{options.network.depth}, batches of {options.network.batch_size}, {options.rounds} rounds by turns")
    print(said("one process of two cores", found["one"], "images/s", 0))
    print(said("two processes of one core each", found["two"], "images/s", 0))
    print(said("  two processes / one process", found["ratio"], ""))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _speed(run: Path, steps: int) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["images_per_second"] for line in lines if line["step"] > steps / 2
                             and "images_per_second" in line)
