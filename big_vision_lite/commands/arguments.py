"""What the commands share: configs and options from the command line, and JAX made ready."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import filelock
import tyro

from big_vision_lite import config as configs
from big_vision_lite.data.cache import cache_dir
from big_vision_lite.data.cores import usable_cores
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.training.distributed import Processes, join

Flat = Annotated[Experiment, tyro.conf.arg(name="")]
"""An experiment whose fields stand at the top of the command line: --steps, not --experiment.steps."""
Arguments = TypeVar("Arguments")


def load(arguments: list[str], command: str) -> tuple[str, Any]:
    """The config that the first argument names, and a name for its run."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"bvl {command} needs a config: bvl {command} configs/quickstart.py")
    experiment = configs.load(arguments[0])
    if not isinstance(experiment, Experiment):
        raise UserError(f"{arguments[0]}: get_config returned {type(experiment).__name__}, expected an Experiment")
    return Path(arguments[0].partition(".py")[0]).name, experiment


def parse(kind: type[Arguments], arguments: list[str], program: str, default: Arguments | None = None) -> Arguments:
    """Arguments as ``kind``; on a wrong one prints the nearest valid ones and exits with code 2."""
    given = {} if default is None else {"default": default}

    def cli() -> Arguments:
        return tyro.cli(kind, args=arguments, prog=program, config=(tyro.conf.AvoidSubcommands,), **given)

    try:
        return cli()
    except SystemError:  # before CPython 3.11.8, two threads that parse sources at once disturb each other (gh-106905)
        return cli()


def set_up_for(run: Path, imports: Sequence[str] = ()) -> Experiment:
    """Make JAX ready for a run of which the folder is there, and return its experiment.

    Args:
      imports: modules beside this package that the classes in the run's config may come from.

    Raises:
      UserError: no such module, or the folder holds no run.
    """
    for module in imports:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"--import {module}: {error}") from None
    experiment = configs.read(run / "config.json", imports)
    set_up_jax(experiment)
    return experiment


COMPILED = 10 * 2**30
"""Most bytes of compiled programs that are kept for later runs; the ones used longest ago go first."""


def set_up_jax(experiment: Experiment, together: Processes | None = None) -> None:
    """Settings that must be made before JAX looks for devices.

    Args:
      together: which of several processes this is; None: the only one.

    Raises:
      UserError: there is no device, or the other processes are not found.
    """
    if experiment.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # neither $JAX_COMPILATION_CACHE_DIR nor an earlier command chose
        compiled = cache_dir() / "compiled"
        mend_compiled(compiled)
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_compilation_cache_max_size", COMPILED)
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", "") and "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # a second command in a process keeps the first one's devices
            jax.config.update("jax_num_cpu_devices", _cpu_devices(experiment, together or Processes()))
    if together is not None:
        join(together)
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {error}") from None


def mend_compiled(folder: Path) -> None:
    """Remove compiled programs whose writing was cut short.

    JAX writes a program and then when it was last used. A process that is killed in between leaves one of which the
    second is missing, and for want of it no process would ever add another.
    """
    if folder.is_dir():
        with filelock.FileLock(folder / ".lockfile"):  # the lock that JAX takes
            for program in folder.glob("*-cache"):
                if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                    program.unlink()


def _cpu_devices(experiment: Experiment, together: Processes, most: int = 8) -> int:
    """CPU devices for a run: XLA computes much of a convolution's step on one core, so that splitting the batch
    over devices is what keeps all cores busy (docs/performance.md). At most one a core, and as batches divide."""
    processes = together.processes or 1
    here = processes if together.on_this_machine else 1
    batches = [experiment.train.batch_size // experiment.accumulate]
    batches += [inputs.batch_size for inputs in experiment.evals.values()]
    count = min(max(usable_cores() // here, 1), most)
    while any(size % (count * processes) for size in batches) or count * processes % experiment.mesh.fsdp:
        if count == 1:
            break
        count -= 1
    return count
