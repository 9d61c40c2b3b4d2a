"""The run's own training step, compiled ahead of time for devices that may not be here."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import time
from typing import Any

import jax
import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.launch.slices import Slice
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.job import Job


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one training step takes of one device."""

    flops: float
    """Floating-point operations, multiply and add counted as two."""
    bytes: float
    """Read from and written to memory."""
    memory: float
    """Bytes in use at the worst moment: the state, a batch and what lies between."""
    fits: bool | None = None
    """What the compiler says of its memory; None: it does not say."""
    seconds: float = 0.0
    """That compiling took."""


def devices_of(where: Slice) -> list[Any]:
    """The devices of a slice: described alone for TPUs; CPU devices, as many as there are to be, for others.

    Raises:
      UserError: libtpu is missing or refuses the slice, or JAX already runs with fewer CPU devices.
    """
    if where.platform == "tpu":
        return _described(where)
    found = jax.devices("cpu")
    if len(found) < where.devices:
        raise UserError(f"{where.name} needs {where.devices} CPU devices and JAX shows {len(found)}; set "
                        f"JAX_NUM_CPU_DEVICES={where.devices}")
    return found[:where.devices]


def show_cpu_devices(where: Slice) -> None:
    """Make JAX show as many CPU devices as a slice has, unless it is too late: it keeps those that it began with."""
    if where.platform != "tpu" and jax.config.jax_num_cpu_devices < where.devices:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", where.devices)


def _described(where: Slice) -> list[Any]:
    # Without these, libtpu asks a cloud's metadata server and waits for it, complains of what it does not find there,
    # and wants to be alone on the machine, as if it used a device.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
                        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(f"{where.name}: compiling for a TPU needs libtpu; pip install 'big_vision_lite[tpu]'") from None
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if where.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip are one device
    if where.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(where.name, "tpu", **options).devices)
    except Exception as error:
        raise UserError(f"{where.name}: libtpu knows no such slice ({str(error).splitlines()[0]})") from None


def batch_description(job: Job) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of each array of a training batch, as `Job.to_devices` makes it, without data."""
    inputs = job.experiment.train
    row = {"image": np.zeros(inputs.transform.shape, np.uint8), "mask": np.zeros((), np.bool_),
           **job.experiment.head.targets({"id": "", "labels": np.zeros(0, np.int32)})}
    sharding = meshes.batch_sharding(job.mesh)
    return {key: jax.ShapeDtypeStruct((inputs.batch_size, *np.shape(value)),
                                      jax.dtypes.canonicalize_dtype(np.asarray(value).dtype), sharding=sharding)
            for key, value in row.items()}


def bytes_on_a_device(tree: Any) -> int:
    """Of the arrays that a tree describes, the part that each device holds."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compile_step(job: Job) -> Cost:
    """Compile ``job.train_step`` for the job's devices, and read what the compiler says of it.

    A step that does not fit has ``fits`` False, the memory that the compiler found it to need (0: it did not say), and
    no other figures.

    XLA counts the body of a loop once. The pieces of an accumulated batch are a loop, so that all is multiplied by
    their number; what the optimiser adds, once a step, is small beside them.
    """
    start = time.perf_counter()
    try:
        compiled = job.train_step.lower(job.description, batch_description(job)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return Cost(0.0, 0.0, _needed(str(error)), False, time.perf_counter() - start)
    figures, memory = compiled.cost_analysis(), compiled.memory_analysis()
    pieces = job.experiment.accumulate
    in_use = (memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
              + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)
    tpu = job.mesh.devices.flat[0].platform == "tpu"
    return Cost(figures["flops"] * pieces, figures["bytes accessed"] * pieces, in_use, True if tpu else None,
                time.perf_counter() - start)


def _needed(message: str) -> float:
    """Bytes, out of the compiler's complaint: "Used 21.53G of 15.75G hbm"."""
    found = re.search(r"Used ([\d.]+)([KMGT]?)", message)
    return float(found[1]) * 1024.0 ** " KMGT".index(found[2] or " ") if found else 0.0
