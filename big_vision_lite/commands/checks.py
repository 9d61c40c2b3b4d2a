"""The commands that look before a run does: ``bvl doctor`` and ``bvl bench``."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

from big_vision_lite.commands.arguments import Flat, load, parse, set_up_jax
from big_vision_lite.errors import UserError

BENCHES = {"input": "input", "save": "saving", "resume": "starting", "processes": "together"}
"""What is measured, and the module of `bench` with its `Options` and function bench_WHAT."""


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


@dataclasses.dataclass(frozen=True)
class BenchStep:
    """Measure a training step on this machine: seconds, memory by the compiler, and the most that the process had."""

    experiment: Flat
    repeat: int = 10
    """Steps that are timed."""
    warm_up: int = 2
    """Steps before them."""
    classes: int | None = None
    """Of the model, to measure without its data, on noise without labels: detection's suppression then has less to
    do. None: open the data, and take its first batch."""
    out: Path | None = None
    """JSON file for all figures."""


def bench(arguments: list[str]) -> int:
    if arguments[:1] == ["step"]:
        return _bench_step(arguments[1:])
    what = arguments[0] if arguments else "nothing"
    if what not in BENCHES:
        raise UserError(f"bvl bench {what}; expected bvl bench step CONFIG, or one of {', '.join(BENCHES)}; with "
                        "--help they say more")
    module = importlib.import_module(f"big_vision_lite.bench.{BENCHES[what]}")
    options = parse(module.Options, arguments[1:], f"bvl bench {what}")
    if what == "save":  # in this process; the others start their own
        set_up_jax(options.network.experiment(steps=1, save_every=1))
    getattr(module, f"bench_{what}")(options)
    return 0


def _bench_step(arguments: list[str]) -> int:
    _, experiment = load(arguments, "bench step")
    asked = parse(BenchStep, arguments[1:], f"bvl bench step {arguments[0]}", BenchStep(experiment))
    set_up_jax(asked.experiment)
    from big_vision_lite.bench.step import bench_step
    from big_vision_lite.launch.preflight import described

    bench_step(asked.experiment, described(asked.experiment, asked.classes), asked.repeat, asked.warm_up, asked.out)
    return 0
