"""What a training step takes, counted from its operations, for devices that nothing here can compile for.

The figures are estimates, by the model of `training.operations`. docs/launching.md compares them with compiled ones.
"""

from __future__ import annotations

import jax

from big_vision_lite.launch.compiled import Cost, batch_description, bytes_on_a_device
from big_vision_lite.training.job import Job
from big_vision_lite.training.operations import count


def count_step(job: Job) -> Cost:
    """The step of a job on one of its devices, of which the batch's part is an equal share."""
    state, batch = job.description, batch_description(job)
    traced = jax.make_jaxpr(job.learner.train_step)(state, batch)
    whole = {tuple(leaf.shape) for leaf in jax.tree.leaves(state)}
    counted = count(traced.jaxpr, whole, job.mesh.size)
    optimizer = 3 * bytes_on_a_device(state)  # each part of it is read and written, and its gradient read
    resident = bytes_on_a_device(state) + bytes_on_a_device(batch)
    return Cost(counted.flops, counted.bytes + optimizer, resident + counted.peak)
