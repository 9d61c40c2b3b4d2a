"""What a run's own training step costs on devices that may not be here: compiled ahead of time, or counted."""

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
from big_vision_lite.launch.accelerators import Topology
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.flops import count
from big_vision_lite.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Cost of one training step on one device."""

    flops: float
    """Floating-point operations; a multiply-add counts as two."""
    bytes: float
    """Memory traffic."""
    memory: float
    """Peak bytes in use: state, batch and activations."""
    fits: bool | None = None
    """Whether the compiler finds that it fits into memory; None: unknown."""
    seconds: float = 0.0
    """Compile time."""


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a topology: libtpu's descriptions of TPUs; for all others, as many CPU devices.

    Raises:
      UserError: libtpu is missing or refuses the topology, or JAX already runs with fewer CPU devices.
    """
    if topology.platform == "tpu":
        return _tpu_devices(topology)
    devices = jax.devices("cpu")
    if len(devices) < topology.devices:
        raise UserError(f"{topology.name} needs {topology.devices} CPU devices and JAX shows {len(devices)}; set "
                        f"JAX_NUM_CPU_DEVICES={topology.devices}")
    return devices[:topology.devices]


def request_cpu_devices(topology: Topology) -> None:
    """Make JAX show as many CPU devices as `devices_of` needs; no effect once JAX has initialized its backends."""
    if topology.platform != "tpu" and jax.config.jax_num_cpu_devices < topology.devices:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", topology.devices)


def _tpu_devices(topology: Topology) -> list[Any]:
    # Otherwise libtpu waits for a cloud's metadata server, warns of what it does not find there, and locks the machine
    # as if it used a device.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
                        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(f"{topology.name} needs libtpu to compile for; pip install 'big_vision_lite[tpu]'") from None
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip are one device
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(topology.name, "tpu", **options).devices)
    except Exception as error:
        raise UserError(f"{topology.name}: libtpu knows no such slice ({str(error).splitlines()[0]})") from None


def batch_spec(trainer: Trainer) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of each array of a training batch, as `Trainer.to_devices` makes it, without data."""
    inputs = trainer.experiment.train
    example = {"image": np.zeros(inputs.transform.shape, np.uint8), "mask": np.zeros((), np.bool_),
           **trainer.experiment.head.targets({"id": "", "labels": np.zeros(0, np.int32)})}
    sharding = meshes.batch_sharding(trainer.mesh)
    return {key: jax.ShapeDtypeStruct((inputs.batch_size, *np.shape(value)),
                                      jax.dtypes.canonicalize_dtype(np.asarray(value).dtype), sharding=sharding)
            for key, value in example.items()}


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their specs, that each device holds."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compile_step(trainer: Trainer) -> StepCost:
    """Compile ``trainer.train_step`` for the trainer's devices and read the compiler's cost analysis.

    For a step that does not fit: ``fits`` False, the memory that it needs by the compiler's message (0: not stated),
    and no other figures.

    XLA counts the body of a loop once. Gradient accumulation is a loop over micro-batches, so everything is multiplied
    by their number; the optimizer, which runs once per step, is small beside them.
    """
    start = time.perf_counter()
    try:
        compiled = trainer.train_step.lower(trainer.state_spec, batch_spec(trainer)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return StepCost(0.0, 0.0, _memory_needed(str(error)), False, time.perf_counter() - start)
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    micro_batches = trainer.experiment.grad_accum_steps
    in_use = (memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
              + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)
    tpu = trainer.mesh.devices.flat[0].platform == "tpu"
    return StepCost(analysis["flops"] * micro_batches, analysis["bytes accessed"] * micro_batches, in_use,
                    True if tpu else None, time.perf_counter() - start)


def _memory_needed(message: str) -> float:
    """Bytes, from an error such as "Used 21.53G of 15.75G hbm"."""
    used = re.search(r"Used ([\d.]+)([KMGT]?)", message)
    return float(used[1]) * 1024.0 ** " KMGT".index(used[2] or " ") if used else 0.0


def count_step(trainer: Trainer) -> StepCost:
    """Estimate the step's cost on one device by counting its operations, for devices that nothing here compiles for.

    The model is that of `training.flops`; docs/launching.md compares it with compiled figures.
    """
    state, batch = trainer.state_spec, batch_spec(trainer)
    traced = jax.make_jaxpr(trainer.step.train_step)(state, batch)
    replicated = {tuple(leaf.shape) for leaf in jax.tree.leaves(state)}
    counted = count(traced.jaxpr, replicated, trainer.mesh.size)
    optimizer_bytes = 3 * bytes_per_device(state)  # reads and writes the state, and reads its gradient
    resident = bytes_per_device(state) + bytes_per_device(batch)
    return StepCost(counted.flops, counted.bytes + optimizer_bytes, resident + counted.peak)
