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
_SMALLEST = 2**12
"""Elements below which an array is not worth spreading."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices split the batch, and how many of those also split the parameters."""

    data: int | None = None
    """Devices along "data"; None: all that "fsdp" leaves."""
    fsdp: int = 1
    """Devices over which parameters and optimiser state are spread; the batch is split over them as well."""

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """
        Args:
          devices: to split over, such as those of a slice that is described alone; None: all that are here.

        Raises:
          UserError: the devices do not divide so.
        """
        count = jax.device_count() if devices is None else len(devices)
        data = count // self.fsdp if self.data is None else self.data
        if data < 1 or self.fsdp < 1 or data * self.fsdp != count:
            raise UserError(f"Mesh: data={self.data}, fsdp={self.fsdp} with {count} devices; their product must be "
                            "the number of devices (data=None takes what fsdp leaves)")
        return jax.make_mesh((data, self.fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The batch axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """For each array: its largest axis that divides goes over "fsdp"; small ones are everywhere."""
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes = [a for a in np.argsort(leaf.shape)[::-1] if leaf.shape[a] % size == 0]
        if size == 1 or not axes or leaf.size < _SMALLEST:
            return replicated(mesh)
        spec = [None] * leaf.ndim
        spec[axes[0]] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, tree)


def to_devices(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This process's rows of a global batch, onto its devices."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def rows_of_processes(mesh: jax.sharding.Mesh, rows: int) -> np.ndarray:
    """Where in a global batch the rows stand that process 0 gave, then those of process 1, and so on: int ``[rows]``.

    A mesh may put the devices of different processes next to each other, as TPUs are wired.
    """
    places = batch_sharding(mesh).devices_indices_map((rows,))
    found = sorted((device.process_index, index.indices(rows)[0]) for device, (index,) in places.items())
    each = rows // mesh.size
    return np.concatenate([np.arange(start, start + each) for _, start in found])


def check_batch(name: str, batch_size: int, mesh: jax.sharding.Mesh, accumulate: int = 1) -> None:
    """Raises: UserError when a global batch does not divide over the devices."""
    parts = mesh.size * accumulate
    if batch_size < 1 or batch_size % parts:
        pieces = f"{mesh.size} devices" + (f" x accumulate={accumulate}" if accumulate > 1 else "")
        nearest = max(parts, round(batch_size / parts) * parts)
        raise UserError(f"{name}: batch_size={batch_size} does not divide over {pieces}; the nearest that does is "
                        f"{nearest}")
