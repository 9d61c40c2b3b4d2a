"""How much longer a run takes to its first step when it goes on from a checkpoint than when it starts anew."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from big_vision_lite.bench.experiments import Network, said, spread, train, write_config
from big_vision_lite.data.cores import cores
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the time to the first step of a run that goes on, beside that of one that starts anew."""

    network: Network = Network(depth=50)
    rounds: int = 3
    folder: Path | None = None
    """Where the runs go; None: the folder for temporary files."""
    out: Path | None = None
    """JSON file for all figures."""


def bench_resume(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all figures; times are seconds.

    Both are real commands in processes of their own, by turns. A run before them leaves the compiled programs that all
    take from the cache, so that none compiles; the time counts from when the process has read its config.

    Raises:
      UserError: fewer than one round, or a run that fails.
    """
    if options.rounds < 1:
        raise UserError(f"rounds={options.rounds}; expected at least one")
    fresh, resumed = [], []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_resume") as name:
        folder = Path(name)
        config = write_config(folder / "config.py", options.network, steps=2, save_every=1)
        stopped, cache = folder / "stopped", folder / "compiled"
        train(config, stopped, [cores()], cache)
        shutil.rmtree(stopped / "checkpoints" / "2")  # what a run leaves that was stopped after its first step
        for number in range(options.rounds + 1):
            again = folder / f"resumed{number}"
            shutil.copytree(stopped, again)
            train(config, again, [cores()], cache)
            anew = folder / f"fresh{number}"
            train(config, anew, [cores()], cache)
            if number:  # the first resumed run compiles what a fresh one needs not
                resumed.append(_first_step(again))
                fresh.append(_first_step(anew))
            shutil.rmtree(again)
            shutil.rmtree(anew)
    found = {"network": dataclasses.asdict(options.network), "fresh": spread(fresh), "resumed": spread(resumed),
             "more": spread([b - a for a, b in zip(fresh, resumed, strict=True)])}
    print(f"ResNet-{options.network.depth}, {options.rounds} rounds by turns, compiled programs from the cache")
    print(said("first step of a fresh run after", found["fresh"], "s"))
    print(said("first step of a run that goes on after", found["resumed"], "s"))
    print(said("  more than a fresh one", found["more"], "s"))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _first_step(run: Path) -> float:
    return json.loads((run / "run.json").read_text())["seconds_to_first_step"]
