"""Calls of the devices: one training step with its batch, or several where the images live on the devices."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_vision_lite.data.resident import ViewMaker, check_space, keep, viewed
from big_vision_lite.experiment import Experiment
from big_vision_lite.system.memory import free_memory
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.trainer import Trainer


class Call(NamedTuple):
    """A number of training steps that are dispatched together."""

    steps: int
    bad_images: int
    """Masked images in this process's rows."""
    run: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]
    """Dispatches the steps. Metrics are scalars for one step with its batch, else ``[steps]``."""


def training_calls(trainer: Trainer, start: int) -> Iterator[Call]:
    """The calls that train from step ``start`` on. With ``resident="device"``, images are decoded here.

    Raises:
      UserError: those do not fit into memory, or one cannot be decoded; or, while iterating, as `Trainer.batches`.
    """
    experiment = trainer.experiment
    if experiment.train.resident == "device":
        return _resident_calls(trainer, start)
    stream = trainer.batches(experiment.train, trainer.data, experiment.seed, start, experiment.steps)
    return (Call(1, int((~batch["mask"]).sum()), functools.partial(_one_step, trainer, batch)) for batch in stream)


def _one_step(trainer: Trainer, batch: dict[str, Any], state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
    return trainer.train_step(state, trainer.to_devices(batch))


def _resident_calls(trainer: Trainer, start: int) -> Iterator[Call]:
    """All kept images are on every device. What is sent for a step is small: which images, and the choices about them,
    drawn on the host as ever, and their targets."""
    experiment, head, inputs = trainer.experiment, trainer.experiment.head, trainer.experiment.train
    kept = keep(trainer.data, inputs, trainer.heartbeat)
    check_space(kept.images.nbytes, _free_device_memory(), len(trainer.data), "a device's memory")
    images = meshes.replicate(kept.images, trainer.mesh)
    maker = ViewMaker(dataclasses.replace(kept, images=kept.images[:0]), trainer.data, inputs, head.targets,
                      experiment.seed, jax.process_index(), jax.process_count(), head.fixed_targets)
    maker.starts = call_starts(experiment, start)
    sharding = meshes.batch_sharding(trainer.mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=trainer.step_shardings)
    def run(state: TrainState, images: jax.Array, batches: dict[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
        def step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
            image = viewed(inputs.transform, images, batch["view"], batch["mask"], jnp)
            batch = {key: value for key, value in batch.items() if key != "view"}
            return trainer.step.train_step(state, batch | {"image": jax.lax.with_sharding_constraint(image, sharding)})

        return jax.lax.scan(step, state, batches)

    def dispatch(batches: dict[str, Any], state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        batches = jax.tree.map(lambda rows: rows.reshape(-1, maker.rows, *rows.shape[1:]), batches)
        return run(state, images, trainer.to_devices(batches, axis=1))

    return (Call(len(mask := batches["mask"]) // maker.rows, int((~mask).sum()), functools.partial(dispatch, batches))
            for batches in trainer.stream(maker, 0, len(maker.starts) - 1))


def call_starts(experiment: Experiment, start: int) -> list[int]:
    """The steps done before each call, from ``start`` on, and at the end.

    A call has ``experiment.steps_per_call`` steps, or as many as there are between lines of metrics, evaluations and
    checkpoints; or one, where one of those is nearer. So two programs are compiled at most.
    """
    intervals = [experiment.log_every, experiment.eval_interval or math.inf, experiment.save_interval]
    length = min(experiment.steps_per_call, *intervals)

    def after(step: int) -> int:
        nearest = min(experiment.steps - step, *(interval - step % interval for interval in intervals))
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
