"""An experiment made real: data opened, model described, functions jitted. Training and evaluation start here."""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from big_vision_lite.data.pipeline import BatchMaker, Input, batches
from big_vision_lite.data.source import Records
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.step import Learner, TrainState, split


@dataclasses.dataclass(frozen=True)
class Job:
    """The parts of one run on these devices."""

    experiment: Experiment
    records: Records
    """What is learnt from; its classes are the model's."""
    mesh: jax.sharding.Mesh
    learner: Learner
    shardings: TrainState
    """Where each array of the state lives."""

    @classmethod
    def open(cls, experiment: Experiment) -> Job:
        """Raises: UserError for anything that is not as the experiment needs it, before a step is taken."""
        mesh = experiment.mesh.build()
        meshes.check_batch("train", experiment.train.batch_size, mesh, experiment.accumulate)
        for name, inputs in experiment.evals.items():
            meshes.check_batch(f"evals.{name}", inputs.batch_size, mesh)
        records = experiment.train.source.open()

        def build() -> nnx.Module:
            rngs = nnx.Rngs(experiment.seed)
            return experiment.head.build(experiment.backbone.build(rngs), records, rngs)

        graphdef = split(nnx.eval_shape(build))[0]
        learner = Learner(graphdef, experiment.head, experiment.optimizer.build(experiment.steps),
                          experiment.accumulate, experiment.ema)
        init = jax.jit(lambda: learner.init(*split(build())[1:]))
        shardings = meshes.state_shardings(jax.eval_shape(init), mesh)
        job = cls(experiment, records, mesh, learner, shardings)
        job.__dict__["_build"] = build
        return job

    def init(self) -> TrainState:
        """A fresh state, made where it lives."""
        make = lambda: self.learner.init(*split(self.__dict__["_build"]())[1:])  # noqa: E731
        return jax.jit(make, out_shardings=self.shardings)()

    def description(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without making it."""
        make = lambda: self.learner.init(*split(self.__dict__["_build"]())[1:])  # noqa: E731
        return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                            jax.eval_shape(make), self.shardings)
