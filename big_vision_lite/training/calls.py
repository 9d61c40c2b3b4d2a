"""Calls of the devices: one training step with its batch, or several where the images live on the devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_lite.data.resident import Kept, ViewMaker, check_space, keep, viewed
from big_vision_lite.experiment import Experiment
from big_vision_lite.system.memory import free_memory
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.trainer import Trainer

Metrics = dict[str, jax.Array]
STEPS_PER_CALL = 100
"""On accelerators, of images that live there."""


class Call(NamedTuple):
    """Training steps that are dispatched together."""

    steps: int
    bad_images: int
    """Masked images in this process's rows."""
    batch: dict[str, Any]
    """Of one step; or, with a leading axis for steps, batches whose images are views of those on the devices."""


class Dispatcher:
    """Dispatches the training steps of a run, or of several that differ in their seed only.

    With ``resident="device"``, all images are on every device. What is sent for a step is small: which images, and the
    random choices about them, drawn on the host as ever, and their targets.

    Args:
      trainer: of one of these runs.
    """

    def __init__(self, trainer: Trainer):
        self._trainer, self._inputs = trainer, trainer.experiment.train
        self._resident, self._programs = self._inputs.resident == "device", dict[int, Any]()

    @cached_property
    def kept(self) -> tuple[Kept, jax.Array]:
        """What is kept of the data: on the host, without images, and the images, on every device.

        Raises:
          UserError: the images do not fit into memory, or one cannot be decoded.
        """
        trainer = self._trainer
        kept = keep(trainer.data, self._inputs, trainer.heartbeat)
        check_space(kept.images.nbytes, _free_device_memory(), len(trainer.data), "a device's memory")
        return (dataclasses.replace(kept, images=kept.images[:0]), meshes.replicate(kept.images, trainer.mesh))

    def calls(self, trainer: Trainer, start: int) -> Iterator[Call]:
        """The calls that train a run from step ``start`` on. Raises: UserError as `kept` and `Trainer.batches`."""
        experiment, head = trainer.experiment, trainer.experiment.head
        if not self._resident:
            for batch in trainer.batches(self._inputs, trainer.data, experiment.seed, start, experiment.steps):
                yield Call(1, int((~batch["mask"]).sum()), batch)
            return
        maker = ViewMaker(self.kept[0], trainer.data, self._inputs, head.for_data(trainer.data).targets,
                          experiment.seed, jax.process_index(), jax.process_count(), head.fixed_targets)
        maker.starts = call_starts(experiment, start, trainer.on_cpu)
        for views in trainer.stream(maker, 0, len(maker.starts) - 1):
            batch = jax.tree.map(lambda rows: rows.reshape(-1, maker.rows, *rows.shape[1:]), views)
            yield Call(len(batch["mask"]), int((~batch["mask"]).sum()), batch)

    def run(self, state: TrainState, call: Call) -> tuple[TrainState, Metrics]:
        """The state after a call, and metrics: scalars for one step with its batch, else ``[steps]``."""
        if not self._resident:
            return self._trainer.train_step(state, self._trainer.to_devices(call.batch))
        return self._steps(state, self.kept[1], self._trainer.to_devices(call.batch, axis=1))

    def run_together(self, states: Sequence[TrainState], calls: Sequence[Call]) -> Sequence[tuple[TrainState, Metrics]]:
        """As `run`, of runs whose calls have the same number of steps, in one program."""
        batch = jax.tree.map(lambda *rows: np.stack(rows), *(call.batch for call in calls))
        program = self._steps_of_runs(len(states))
        return program(tuple(states), self.kept[1], self._trainer.to_devices(batch, axis=2))

    def _scan(self, state: TrainState, images: jax.Array, batches: dict[str, Any]) -> tuple[TrainState, Metrics]:
        sharding = meshes.batch_sharding(self._trainer.mesh)

        def step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
            image = viewed(self._inputs.transform, images, batch["view"], batch["mask"], jnp)
            batch = {key: value for key, value in batch.items() if key != "view"}
            batch["image"] = jax.lax.with_sharding_constraint(image, sharding)
            return self._trainer.step.train_step(state, batch)

        if len(batches["mask"]) == 1:  # no loop: on CPUs, XLA computes convolutions in loops slowly
            state, metrics = step(state, jax.tree.map(lambda rows: rows[0], batches))
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(step, state, batches)

    @cached_property
    def _steps(self):
        return jax.jit(self._scan, donate_argnums=0, out_shardings=self._trainer.step_shardings,
                       compiler_options=self._trainer.compiler_options)

    def _steps_of_runs(self, count: int):
        """As `_steps`, of tuples of ``count`` states and results, and batches with a leading axis for runs."""
        def steps(states: tuple[TrainState, ...], images: jax.Array, batches: dict[str, Any]):
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            results = jax.vmap(self._scan, in_axes=(0, None, 0))(stacked, images, batches)
            return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(count))

        if count not in self._programs:
            self._programs[count] = jax.jit(steps, donate_argnums=0, compiler_options=self._trainer.compiler_options,
                                            out_shardings=(self._trainer.step_shardings,) * count)
        return self._programs[count]


def call_starts(experiment: Experiment, start: int, on_cpu: bool = False) -> list[int]:
    """The steps done before each call, from ``start`` on, and at the end.

    A call has ``experiment.steps_per_call`` steps (None: 1 on CPUs, `STEPS_PER_CALL` elsewhere), or as many as there
    are between lines of metrics, evaluations and checkpoints; or one, where one of those or of ``experiment.keep`` is
    nearer. So two programs are compiled at most.
    """
    intervals = [experiment.log_every, experiment.eval_interval or math.inf, experiment.save_interval]
    length = min(experiment.steps_per_call or (1 if on_cpu else STEPS_PER_CALL), *intervals)

    def after(step: int) -> int:
        stops = [kept - step for kept in (*experiment.keep, experiment.steps) if kept > step]
        nearest = min(*stops, *(interval - step % interval for interval in intervals))
        return step + (length if length <= nearest else 1)

    starts = [start]
    while starts[-1] < experiment.steps:
        starts.append(after(starts[-1]))
    return starts


def _free_device_memory() -> int | None:
    """Bytes on the fullest device of this process; None where devices do not report them."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        free = free_memory()
        return free and free // len(devices)
    reports = [device.memory_stats() or {} for device in devices]
    return min((report["bytes_limit"] - report["bytes_in_use"] for report in reports if "bytes_limit" in report),
               default=None)
