"""What each command of ``bvl`` takes and does."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from big_vision_lite import config as configs
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment

Flat = Annotated[Experiment, tyro.conf.arg(name="")]
"""An experiment whose fields stand at the top of the command line: --steps, not --experiment.steps."""
Arguments = TypeVar("Arguments")


@dataclasses.dataclass(frozen=True)
class Train:
    """Train, score and draw; in a folder that holds a part of the same run, go on with it."""

    experiment: Flat
    workdir: Path
    """Folder for the run's files."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the resolved experiment as JSON."""

    experiment: Flat


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint again: prints the figures, and writes them and a picture to RUN/evaluations."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    split: str | None = None
    """Another split of the evaluations' source; by default what the config names."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules beside this package that the classes in the run's config may come from."""


def train(arguments: list[str]) -> int:
    name, experiment = _load(arguments, "train")
    asked = _parse(Train, arguments[1:], f"bvl train {arguments[0]}", Train(experiment, Path("runs") / name))
    _set_up_jax(asked.experiment)
    from big_vision_lite.training.loop import Stopped, train

    try:
        train(asked.experiment, asked.workdir)
    except Stopped as stop:
        print(f"bvl: {stop}", file=sys.stderr)
        return stop.code
    return 0


def evaluate(arguments: list[str]) -> int:
    asked = _parse(Evaluate, arguments, "bvl evaluate")
    for module in asked.imports:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"--import {module}: {error}") from None
    _set_up_jax(configs.read(asked.run / "config.json", asked.imports))
    from big_vision_lite.training.evaluate import evaluate

    print(json.dumps(evaluate(asked.run, asked.split, asked.step, asked.imports), indent=2))
    return 0


def config(arguments: list[str]) -> int:
    if arguments[:1] != ["show"]:
        raise UserError("expected: bvl config show CONFIG [overrides]")
    _, experiment = _load(arguments[1:], "config show")
    asked = _parse(Show, arguments[2:], f"bvl config show {arguments[1]}", Show(experiment))
    print(json.dumps(configs.to_json(asked.experiment), indent=2))
    return 0


def _load(arguments: list[str], command: str) -> tuple[str, Any]:
    """The config that the first argument names, and a name for its run."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"bvl {command} needs a config: bvl {command} configs/quickstart.py")
    experiment = configs.load(arguments[0])
    if not isinstance(experiment, Experiment):
        raise UserError(f"{arguments[0]}: get_config returned {type(experiment).__name__}, expected an Experiment")
    return Path(arguments[0].partition(".py")[0]).name, experiment


def _parse(kind: type[Arguments], arguments: list[str], program: str, default: Arguments | None = None) -> Arguments:
    """Arguments as ``kind``; on a wrong one prints the nearest valid ones and exits with code 2."""
    given = {} if default is None else {"default": default}
    return tyro.cli(kind, args=arguments, prog=program, config=(tyro.conf.AvoidSubcommands,), **given)


def _set_up_jax(experiment: Experiment) -> None:
    """Settings that must be made before JAX looks for devices. Raises: UserError when it finds none."""
    if experiment.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    import jax

    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", "") and "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # a second command in a process keeps the first one's devices
            jax.config.update("jax_num_cpu_devices", _cpu_devices(experiment))
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {error}") from None


def _cpu_devices(experiment: Experiment, most: int = 8) -> int:
    """CPU devices for a run: XLA computes much of a convolution's step on one core, so that splitting the batch
    over devices is what keeps all cores busy (docs/performance.md). At most one a core, and as batches divide."""
    batches = [experiment.train.batch_size // experiment.accumulate]
    batches += [inputs.batch_size for inputs in experiment.evals.values()]
    count = min(os.cpu_count() or 1, most)
    while any(size % count for size in batches) or count % experiment.mesh.fsdp:
        if count == 1:
            break
        count -= 1
    return count
