"""Devices as a mesh ("data", "fsdp"), and where each array of a run lives on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from big_vision_lite.errors import UserError

AXES = ("data", "fsdp")
_MIN_SHARDED = 2**12
"""Elements below which an array is replicated: sharding it would not pay."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices split the batch, and how many of those also split the parameters."""

    data: int | None = None
    """Devices along "data"; None: all devices divided by ``fsdp``."""
    fsdp: int = 1
    """Devices over which parameters and optimiser state are sharded; the batch is split over them as well."""

    def __post_init__(self) -> None:
        if min(self.fsdp, 1 if self.data is None else self.data) < 1:
            raise UserError(f"Mesh: data={self.data}, fsdp={self.fsdp}; expected at least 1")

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """
        Args:
          devices: to build the mesh of, such as a described topology; None: all of this run.

        Raises:
          UserError: the product of ``data`` and ``fsdp`` is not the number of devices.
        """
        count = jax.device_count() if devices is None else len(devices)
        data = count // self.fsdp if self.data is None else self.data
        if data * self.fsdp != count:
            raise UserError(f"Mesh: data={self.data}, fsdp={self.fsdp} with {count} devices; their product must be "
                            "the number of devices (data=None takes what fsdp leaves)")
        return jax.make_mesh((data, self.fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: jax.sharding.Mesh, axis: int = 0) -> NamedSharding:
    """The batch axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """For each array: its largest divisible axis is sharded over "fsdp"; small arrays are replicated."""
    size = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        axes = [a for a in np.argsort(leaf.shape)[::-1] if leaf.shape[a] % size == 0]
        if size == 1 or not axes or leaf.size < _MIN_SHARDED:
            return replicated(mesh)
        spec = [None] * leaf.ndim
        spec[axes[0]] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, tree)


def to_devices(batch: Any, mesh: jax.sharding.Mesh, axis: int = 0) -> Any:
    """The arrays of a global batch on the devices, from each process's own rows, which are along ``axis``."""
    sharding = batch_sharding(mesh, axis)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def replicate(array: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """An array that every process has, on every device."""
    return jax.make_array_from_process_local_data(replicated(mesh), array, array.shape)


def rows_of_processes(mesh: jax.sharding.Mesh, rows: int) -> np.ndarray:
    """Positions in a global batch of process 0's rows, then of process 1's, and so on: int ``[rows]``.

    They are not 0, 1, 2, ... where a mesh mixes the devices of different processes, as the wiring of TPUs may ask for.
    """
    slices = batch_sharding(mesh).devices_indices_map((rows,))
    starts = sorted((device.process_index, rows_of.indices(rows)[0]) for device, (rows_of,) in slices.items())
    rows_per_device = rows // mesh.size
    return np.concatenate([np.arange(start, start + rows_per_device) for _, start in starts])


def check_batch(name: str, batch_size: int, mesh: jax.sharding.Mesh, grad_accum_steps: int = 1) -> None:
    """Raises: UserError when a global batch does not divide over the devices and micro-batches."""
    parts = mesh.size * grad_accum_steps
    if batch_size < 1 or batch_size % parts:
        divisor = f"{mesh.size} devices" + (f" x grad_accum_steps={grad_accum_steps}" if grad_accum_steps > 1 else "")
        nearest = max(parts, round(batch_size / parts) * parts)
        raise UserError(f"{name}: batch_size={batch_size} does not divide over {divisor}; the nearest that does is "
                        f"{nearest}")
