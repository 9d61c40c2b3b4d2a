"""The commands that look before a run does: ``bvl doctor`` and ``bvl bench``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from big_vision_lite.commands.arguments import Flat, load, parse, set_up_jax
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check before step 0 that all a run needs is there, and that data comes as fast as it is used."""

    experiment: Flat
    workdir: Path
    """Folder where the run would be; looked at for the space on its disk."""


def doctor(arguments: list[str]) -> int:
    name, experiment = load(arguments, "doctor")
    asked = parse(Doctor, arguments[1:], f"bvl doctor {arguments[0]}", Doctor(experiment, Path("runs") / name))
    set_up_jax(asked.experiment)
    from big_vision_lite.training.doctor import run

    return run(asked.experiment, asked.workdir)


def bench(arguments: list[str]) -> int:
    if arguments[:1] != ["input"]:
        raise UserError("expected: bvl bench input [--images FOLDER] [--cores 1 2]; bvl bench input --help says more")
    from big_vision_lite.bench.input import Options, bench_input

    bench_input(parse(Options, arguments[1:], "bvl bench input"))
    return 0
