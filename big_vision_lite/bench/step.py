"""What a training step takes: seconds, and memory by the compiler and by the system."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from big_vision_lite.data.source import Described, Records
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.training.job import Job


def bench_step(experiment: Experiment, data: Described, repeat: int = 10, warm_up: int = 2,
               out: Path | None = None) -> dict[str, Any]:
    """Compile a run's own training step, repeat it on one batch, print a table, and return all figures.

    Sizes are in bytes. Those of the compiler are of each device: "temporary", what lies between the parts of a step,
    and "in_use", with state, batch and program. "resident" is the most that the process ever had of the machine's
    memory, with Python, the compiler and on CPUs all devices: before compiling, before the first step, and at the end.
    "device_peak" is the most that was in use on the first device, where it counts (GPUs and TPUs).

    Args:
      data: opened records, of which the first batch is taken; or their mere description: then images are noise and
        have no labels. Arrays and their shapes are the same; what depends on content, as non-maximum suppression, has
        less to do then.
      repeat: steps that are timed.
      warm_up: steps before them.
      out: JSON file for all figures.

    Raises:
      UserError: ``repeat`` or ``warm_up`` is no such number, or the step cannot be built.
    """
    if repeat < 1 or warm_up < 0:
        raise UserError(f"--repeat {repeat}, --warm-up {warm_up}; expected at least 1, and at least 0")
    job = Job(experiment, data)
    inputs = experiment.train
    batch = next(iter(job.batches(inputs, data, experiment.seed, 0, 1))) if isinstance(data, Records) else _noise(job)
    shape, before = batch["image"].shape, resident()
    with _compiled_anew():
        state, batch, began = job.fresh(), job.to_devices(batch), time.perf_counter()
        compiled = job.train_step.lower(state, batch).compile()
        compiling, memory = time.perf_counter() - began, compiled.memory_analysis()
    ready, seconds = resident(), []
    for _ in range(warm_up + repeat):
        began = time.perf_counter()
        state, figures = compiled(state, batch)
        jax.block_until_ready((state, figures))
        seconds.append(time.perf_counter() - began)
    seconds = seconds[warm_up:]
    median, device = statistics.median(seconds), job.mesh.devices.flat[0]
    found = {
        "devices": [device.device_kind, job.mesh.size], "batch": list(shape), "repeat": repeat,
        "compile_seconds": compiling,
        "seconds": {"median": median, "least": min(seconds), "most": max(seconds)},
        "images_per_second": inputs.batch_size / median,
        "compiler": {
            "temporary": memory.temp_size_in_bytes,
            "in_use": memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes},
        "resident": {"before": before, "compiled": ready, "end": resident()},
        "device_peak": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }
    _show(found)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def resident() -> int:
    """The most bytes of the machine's memory that this process had at any time; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _noise(job: Job) -> dict[str, np.ndarray]:
    """A batch of this process without data."""
    inputs = job.experiment.train
    rows = inputs.batch_size // jax.process_count()
    targets = job.experiment.head.targets({"id": "", "labels": np.zeros(0, np.int32)})
    images = np.random.default_rng(0).integers(0, 256, (rows, *inputs.transform.shape), np.uint8)
    return {"image": images, "mask": np.ones(rows, np.bool_),
            **{name: np.repeat(value[None], rows, 0) for name, value in targets.items()}}


@contextlib.contextmanager
def _compiled_anew() -> Iterator[None]:
    """Without programs kept from earlier runs, which were not compiled now and no longer tell their memory."""
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
        compilation_cache.reset_cache()


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    (kind, count), (images, height, width, _) = found["devices"], found["batch"]
    table = Table(title=f"a training step of {images} images of {height} x {width} on {count} x {kind}",
                  title_justify="left", show_header=False)
    seconds, memory = found["seconds"], found["resident"]
    rows = [("a step", f"{seconds['median']:.4g} s (median of {found['repeat']}; {seconds['least']:.4g} to "
                       f"{seconds['most']:.4g}), {found['images_per_second']:.4g} images/s"),
            ("compiling", f"{found['compile_seconds']:.1f} s"),
            ("temporary, a device", _gib(found["compiler"]["temporary"]) + " by the compiler"),
            ("in use, a device", _gib(found["compiler"]["in_use"]) + " by the compiler, with state and batch")]
    if found["device_peak"] is not None:
        rows.append(("peak of the device", _gib(found["device_peak"])))
    rows.append(("peak of the process", f"{_gib(memory['end'])} at the end, {_gib(memory['compiled'])} compiled, "
                                        f"{_gib(memory['before'])} before"))
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
