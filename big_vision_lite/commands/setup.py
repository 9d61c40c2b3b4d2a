"""JAX made ready for a run: devices, several processes, and the cache of compiled programs."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

from big_vision_lite.errors import UserError, first_line
from big_vision_lite.experiment import Experiment, read_experiment
from big_vision_lite.system import cpu
from big_vision_lite.system.cache import cache_dir
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.system.cpu import CpuSettings
from big_vision_lite.training.distributed import Processes, join, leaving_on_error

CACHE_BYTES = 10 * 2**30
"""Size of the cache of compiled programs; the least recently used go first."""


def set_up_for(run: Path, imports: Sequence[str] = ()) -> Experiment:
    """Make JAX ready for an existing run, and return its experiment.

    Args:
      imports: modules outside this package that classes in the run's config may come from.

    Raises:
      UserError: no such module, or the folder holds no run.
    """
    for module in imports:
        try:
            importlib.import_module(module)
        except Exception as error:  # the module's own
            raise UserError(f"--import {module}: {type(error).__name__}: {first_line(error)}") from error
    experiment = read_experiment(run / "config.json", imports)
    set_up_jax(experiment)
    return experiment


def set_up_jax(experiment: Experiment, processes: Processes | None = None, earlier: CpuSettings | None = None) -> None:
    """Make the settings that must precede JAX's search for devices.

    Args:
      processes: which of a run's processes this is; None: the only one.
      earlier: how a run that is to be resumed computed on CPUs; None: as suits this machine.

    Raises:
      UserError: there is no device, or the other processes cannot be reached.
    """
    if experiment.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    cpu.use_settings(earlier or cpu.default_settings(_cpu_devices(experiment, processes or Processes())))
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # set neither by $JAX_COMPILATION_CACHE_DIR nor before
        folder = cache_dir() / "compiled"
        remove_incomplete_programs(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", "") and "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # a second command in a process keeps the first one's devices
            jax.config.update("jax_num_cpu_devices", cpu.settings().devices or 1)
    if processes is not None:
        join(processes)
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {error}") from None
    if jax.default_backend() == "cpu":
        cpu.keep_freed_memory()


def run_training(experiment: Experiment, workdir: Path, processes: Processes | None = None, seeds: Sequence[int] = (),
                 **options: Any) -> int:
    """Make JAX ready, train, and return the exit code.

    Args:
      seeds: to train side by side, instead of the experiment's own.
      options: those of `training.loop.train`, or with ``seeds`` of `training.seeds.train_seeds`.
    """
    from big_vision_lite.training.metrics import earlier_cpu_settings
    from big_vision_lite.training.workdir import run_folder

    with leaving_on_error():
        first = run_folder(workdir) / f"seed{seeds[0]}" if seeds else run_folder(workdir)
        # Another number of processes has another number of devices.
        set_up_jax(experiment, processes, None if processes else earlier_cpu_settings(first))
        from big_vision_lite.training.loop import Stopped, train
        from big_vision_lite.training.seeds import train_seeds

        try:
            if seeds:
                train_seeds(experiment, workdir, seeds, **options)
            else:
                train(experiment, workdir, **options)
        except Stopped as stop:
            print(f"bvl: {stop}", file=sys.stderr)
            return stop.code
    return 0


def remove_incomplete_programs(folder: Path) -> None:
    """Remove compiled programs whose writing was interrupted.

    JAX writes a program, then the time of its last use. Killed in between, a process leaves a program without that
    time, and JAX then fails to add any other.
    """
    if folder.is_dir():
        with filelock.FileLock(folder / ".lockfile"):  # the lock that JAX takes
            for program in folder.glob("*-cache"):
                if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                    program.unlink()


def _cpu_devices(experiment: Experiment, processes: Processes) -> int:
    """Number of CPU devices for a run: at most one per two cores, at most 8, and such that batches divide. One device
    computes on all cores, but not all of a step; on two cores one device is faster than two (docs/performance.md), and
    more cores were not measured."""
    count = processes.processes or 1
    local = count if processes.on_this_machine else 1
    batches = [experiment.train.batch_size // experiment.grad_accum_steps]
    batches += [inputs.batch_size for inputs in experiment.evals.values()]
    devices = min(max(usable_cores() // local // 2, 1), 8)
    while devices > 1 and (any(size % (devices * count) for size in batches)
                           or devices * count % experiment.mesh.fsdp):
        devices -= 1
    return devices
