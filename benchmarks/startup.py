"""Time to the first step of a resumed run, against that of a fresh one.

    python benchmarks/startup.py
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from experiments import Network, line, main, spread, train, write_config, write_measurements

from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the time to the first step of resumed and of fresh runs."""

    network: Network = Network(depth=50)
    rounds: int = 3
    folder: Path | None = None
    """Folder for the runs; by default that for temporary files."""
    out: Path | None = None
    """JSON file for all measurements."""


def benchmark(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all measurements, in seconds.

    Both are ``bvl train`` in processes of their own, interleaved. A run before them fills the cache of compiled
    programs, so that none compiles; the time counts from when the process has read its config.

    Raises:
      UserError: fewer than one round, or a run that fails.
    """
    if options.rounds < 1:
        raise UserError(f"rounds={options.rounds}; expected at least one")
    times = {"fresh": [], "resumed": []}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_startup") as name:
        folder = Path(name)
        config = write_config(folder / "config.py", options.network, steps=2)
        stopped, cache = folder / "stopped", folder / "compiled"
        train(config, stopped, cache)
        shutil.rmtree(stopped / "checkpoints" / "2")  # as a run that was stopped after its first step
        for number in range(options.rounds + 1):
            resumed, fresh = folder / f"resumed{number}", folder / f"fresh{number}"
            shutil.copytree(stopped, resumed)
            for workdir in (resumed, fresh):
                train(config, workdir, cache)
            if number:  # the first resumed run compiles what a fresh one does not need
                for kind, workdir in (("resumed", resumed), ("fresh", fresh)):
                    seconds = json.loads((workdir / "run.json").read_text())["seconds_to_first_step"]
                    times[kind].append(seconds)
            shutil.rmtree(resumed)
            shutil.rmtree(fresh)
    differences = [resumed - fresh for resumed, fresh in zip(times["resumed"], times["fresh"], strict=True)]
    result = {"network": dataclasses.asdict(options.network), "fresh": spread(times["fresh"]),
              "resumed": spread(times["resumed"]), "difference": spread(differences)}
    print(f"ResNet-{options.network.depth}, {options.rounds} interleaved rounds, compiled programs from the cache")
    print(line("first step of a fresh run after", result["fresh"], "s"))
    print(line("first step of a resumed run after", result["resumed"], "s"))
    print(line("  difference", result["difference"], "s"))
    return write_measurements(options.out, result)


if __name__ == "__main__":
    main(benchmark, Options)
