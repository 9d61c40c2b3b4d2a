"""Time and memory of a training step."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from big_vision_lite.data.source import Dataset, DatasetInfo
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.training.trainer import Trainer


def bench_step(experiment: Experiment, data: DatasetInfo, repeat: int = 10, warm_up: int = 2) -> dict[str, Any]:
    """Compile a run's training step, repeat it on one batch, print a table, and return all results.

    Sizes are in bytes. Those of the compiler are per device: "temporary", of intermediate results, and "in_use", with
    state, batch and program. "resident" is the peak memory of the process so far (with Python, the compiler and, on
    CPUs, all devices): before compiling, before the first step, and at the end. "device_peak" is the first device's
    peak memory, on GPUs and TPUs.

    Args:
      data: opened data, whose first batch is used; or only its description: then images are noise without labels.
        Shapes are the same, but what depends on content, such as non-maximum suppression, has less to do.
      repeat: steps to time.
      warm_up: steps before them.

    Raises:
      UserError: ``repeat`` or ``warm_up`` is out of range, or the step cannot be built.
    """
    if repeat < 1 or warm_up < 0:
        raise UserError(f"--repeat {repeat}, --warm-up {warm_up}; expected at least 1, and at least 0")
    trainer, inputs = Trainer(experiment, data), experiment.train
    batch = trainer.batch_maker(inputs, data, experiment.seed)(0) if isinstance(data, Dataset) else _noise(trainer)
    shape, before = batch["image"].shape, peak_memory()
    with _no_compilation_cache():
        state, batch, began = trainer.random_init(), trainer.to_devices(batch), time.perf_counter()
        compiled = trainer.train_step.lower(state, batch).compile()
        compile_seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    ready, seconds = peak_memory(), []
    for _ in range(warm_up + repeat):
        began = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    seconds = seconds[warm_up:]
    median, device = statistics.median(seconds), trainer.mesh.devices.flat[0]
    results = {
        "devices": [device.device_kind, trainer.mesh.size], "batch": list(shape), "repeat": repeat,
        "compile_seconds": compile_seconds,
        "seconds": {"median": median, "least": min(seconds), "most": max(seconds)},
        "images_per_second": inputs.batch_size / median,
        "compiler": {
            "temporary": memory.temp_size_in_bytes,
            "in_use": memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes},
        "resident": {"before": before, "compiled": ready, "end": peak_memory()},
        "device_peak": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }
    _print(results)
    return results


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _noise(trainer: Trainer) -> dict[str, np.ndarray]:
    """This process's batch without data."""
    inputs = trainer.experiment.train
    rows = inputs.batch_size // jax.process_count()
    targets = trainer.experiment.head.targets({"id": "", "labels": np.zeros(0, np.int32)})
    images = np.random.default_rng(0).integers(0, 256, (rows, *inputs.transform.shape), np.uint8)
    return {"image": images, "mask": np.ones(rows, np.bool_),
            **{name: np.repeat(value[None], rows, 0) for name, value in targets.items()}}


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Programs from the cache cost no compile time and do not report their memory."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    (kind, count), (images, height, width, _) = results["devices"], results["batch"]
    seconds, memory = results["seconds"], results["resident"]
    table = Table(title=f"training step of {images} images of {height} x {width} on {count} x {kind}",
                  title_justify="left", show_header=False)
    table.add_row("step", f"{seconds['median']:.4g} s (median of {results['repeat']}; {seconds['least']:.4g} to "
                          f"{seconds['most']:.4g}), {results['images_per_second']:.4g} images/s")
    table.add_row("compiling", f"{results['compile_seconds']:.1f} s")
    table.add_row("temporary per device", _gib(results["compiler"]["temporary"]) + " by the compiler")
    table.add_row("in use per device", _gib(results["compiler"]["in_use"]) + " by the compiler, with state and batch")
    if results["device_peak"] is not None:
        table.add_row("peak of the device", _gib(results["device_peak"]))
    table.add_row("peak of the process", f"{_gib(memory['end'])} at the end, {_gib(memory['compiled'])} after "
                                         f"compiling, {_gib(memory['before'])} before")
    Console(highlight=False).print(table)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
