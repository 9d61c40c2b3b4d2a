"""An experiment made real: data opened, model described, functions jitted. Training and evaluation start here."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from big_vision_lite.backbones.norm import divides
from big_vision_lite.data.curation import Vocabulary, curated
from big_vision_lite.data.pipeline import BatchMaker, Input, Targets, batches
from big_vision_lite.data.source import Described, Records
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.head import Scores
from big_vision_lite.remote import written
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.step import Learner, TrainState, Tree, merge, split


class Job:
    """The parts of one run on these devices.

    Args:
      described: what the run's data was, when it is to be evaluated where that is not. None: open it.
      devices: that the run is to be on; None: all that are here.

    Attributes:
      data: what is learnt from (or its description); its classes are the model's.
      learner: the static part of the step.
      taken_over: what a fresh state took from elsewhere, in words.
      beat: called whenever a batch was made, for whom it is to know that the run is alive.

    Raises:
      UserError: anything that is not as the experiment needs it. No step has been taken then.
    """

    def __init__(self, experiment: Experiment, described: Described | None = None,
                 devices: Sequence[Any] | None = None):
        self.experiment = experiment
        self.mesh = experiment.mesh.build(devices)
        meshes.check_batch("train", experiment.train.batch_size, self.mesh, experiment.accumulate)
        for name, inputs in experiment.evals.items():
            meshes.check_batch(f"evals.{name}", inputs.batch_size, self.mesh)
        transfer = experiment.transfer
        optimizer = transfer.optimizer(experiment.optimizer.build(experiment.steps))
        self.data = experiment.train.open() if described is None else described
        if self.data.unlabelled:
            raise UserError(f"the images of train ({type(experiment.train.source).__name__}) have no annotations at "
                            "all, and nothing can be learnt from them; give the file of a split that has some")
        self._evals: dict[str, Records] = {}
        self.taken_over: str | None = None
        self.beat: Callable[[], None] = lambda: None
        model = nnx.eval_shape(self._build)
        graphdef, params, _ = split(model)
        transfer.check(params)
        if self.mesh.shape["fsdp"] > 1:
            optimizer = _sharded(optimizer, meshes.state_shardings(params, self.mesh))
        self.learner = Learner(graphdef, experiment.head, optimizer, experiment.accumulate, experiment.ema,
                               transfer.frozen if transfer.freeze else None,
                               self.mesh if self._apart(model) else None)

    def _apart(self, model: nnx.Module) -> bool:
        """Whether devices are to compute their gradients apart: where each message between them is slow, and nothing
        else changes by it."""
        rows = self.experiment.train.batch_size // self.mesh.size // self.experiment.accumulate
        slow = jax.process_count() > 1 and self.mesh.devices.flat[0].platform == "cpu"
        return slow and self.mesh.shape["fsdp"] == 1 and not self.experiment.head.mixes and divides(model, rows)

    def _build(self) -> nnx.Module:
        rngs = nnx.Rngs(self.experiment.seed)
        model = self.experiment.head.build(self.experiment.backbone.build(rngs), self.data, rngs)
        self.experiment.transfer.fix_statistics(model)
        return model

    def _init(self) -> TrainState:
        return self.learner.init(*split(self._build())[1:])

    @cached_property
    def description(self) -> TrainState:
        """Shape, dtype and sharding of each array of the state."""
        shapes = jax.eval_shape(self._init)
        return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                            shapes, meshes.state_shardings(shapes, self.mesh))

    def fresh(self) -> TrainState:
        """A state of random parameters, made where it lives."""
        # XLA's CPU compiler would take half a minute to optimise random numbers that are drawn once.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(self._init, out_shardings=self._shardings, compiler_options=options)()

    def init(self) -> TrainState:
        """A fresh state, with what the experiment takes over from elsewhere."""
        state, transfer = self.fresh(), self.experiment.transfer
        if transfer.init is None:
            return state
        params, stats, self.taken_over = transfer.take_over(
            state.params, state.stats, getattr(self.experiment.backbone, "pixels", None))
        average = None if state.average is None else jax.tree.map(jnp.copy, params)
        return dataclasses.replace(state, params=params, stats=stats, average=average)

    @property
    def _shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.description)

    @cached_property
    def train_step(self):
        """``(state, batch) -> (state, figures)``, jitted; the state's memory is reused."""
        return jax.jit(self.learner.train_step, donate_argnums=0,
                       out_shardings=(self._shardings, meshes.replicated(self.mesh)))

    @cached_property
    def eval_step(self):
        """``(params, stats, batch) -> outputs``, jitted; every process gets all rows."""
        return jax.jit(self.learner.eval_step, out_shardings=meshes.replicated(self.mesh))

    def open_eval(self, name: str, scored: bool = True) -> tuple[Input, Records]:
        """An evaluation's input and its records.

        Raises:
          UserError: its classes are not the model's, or it is to be ``scored`` and has no annotations.
        """
        inputs = self.experiment.evals[name]
        if name not in self._evals:
            self._evals[name] = self._in_the_vocabulary(inputs.open())
        records = self._evals[name]
        if scored and records.unlabelled:
            raise UserError(f"the images of evals.{name} have no annotations to score predictions against; bvl "
                            "evaluate RUN --submission FILE writes what a server scores")
        if records.classes != self.data.classes:
            ours, theirs = self.data.classes, records.classes
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                      min(len(ours), len(theirs)))
            found = [repr(c[at]) if at < len(c) else "none" for c in (theirs, ours)]
            raise UserError(f"evals.{name} has {len(theirs)} classes and training {len(ours)}; the first that differs "
                            f"is number {at}: {found[0]}, expected {found[1]}")
        return inputs, records

    def _in_the_vocabulary(self, records: Records) -> Records:
        """An evaluation is restricted to the classes that training was, in whatever way they were chosen there."""
        restricted = any(isinstance(step, Vocabulary) for step in self.experiment.train.curate)
        if not restricted or set(self.data.classes) >= set(records.classes):
            return records
        known = tuple(name for name in self.data.classes if name in set(records.classes))
        chosen = Vocabulary(known, "keep" if records.unlabelled else "drop")
        return curated(records, (chosen,)) if known else records

    def batches(self, inputs: Input, records: Records, seed: int | None, start: int = 0, stop: int | None = None,
                targets: Targets | None = None) -> Iterator[dict[str, np.ndarray]]:
        """This process's share of batches ``start`` to ``stop``; by default, those of one pass, with the head's
        targets.

        A batch depends on its number alone, so that when a worker process dies, others make what it had not.

        Raises:
          UserError: worker processes die before they have made a batch.
        """
        make = self._maker(inputs, records, seed, targets)
        return self._steadily(make, start, len(make) if stop is None else stop)

    def _steadily(self, make: BatchMaker, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        begun = None
        while start < stop:
            try:
                for batch in batches(make, start, stop):
                    self.beat()
                    start += 1
                    yield batch
            except RuntimeError as error:
                if not make.inputs.workers or "terminated unexpectedly" not in str(error):
                    raise
                if begun == start:
                    raise UserError(f"worker processes die before they have made batch {start}: "
                                    f"{str(error).partition('. ')[0]}; is there memory for workers="
                                    f"{make.inputs.workers}?") from error
                print(f"bvl: {str(error).partition('. ')[0]}; others make batch {start} and what follows",
                      file=sys.stderr)
                begun = start

    def _maker(self, inputs: Input, records: Records, seed: int | None, targets: Targets | None = None) -> BatchMaker:
        return BatchMaker(records, inputs, targets or self.experiment.head.targets, seed, jax.process_index(),
                          jax.process_count())

    def to_devices(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch as global arrays, without what is for the host alone."""
        return meshes.to_devices({k: v for k, v in batch.items() if k != "index"}, self.mesh)

    def outputs(self, params: Tree, stats: Tree, inputs: Input,
                records: Records) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Each batch of an evaluation with the head's outputs, both global and on the host."""
        waiting = None
        for batch in self.batches(inputs, records, seed=None):
            outputs = self.eval_step(params, stats, self.to_devices(batch))
            if waiting:  # one batch behind, so that devices and host work at the same time
                yield self.to_host(*waiting)
            waiting = batch, outputs
        if waiting:
            yield self.to_host(*waiting)

    def to_host(self, batch: dict[str, np.ndarray], outputs: Any) -> tuple[dict[str, np.ndarray], Any]:
        """A batch that this process made and what was computed of the global one, as the global one on the host; its
        images stay this process's."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            small = {k: v for k, v in batch.items() if k != "image"}
            gathered = multihost_utils.process_allgather(small, tiled=True)
            order = np.argsort(meshes.rows_of_processes(self.mesh, len(gathered["mask"])))
            batch = {**{k: v[order] for k, v in gathered.items()}, "image": batch["image"]}
        return batch, jax.tree.map(np.asarray, outputs)

    def score(self, state: TrainState, name: str, results: Path | None = None) -> dict[str, float]:
        """The figures of one evaluation; only "images" where there is nothing to score against.

        Args:
          results: file to write the predictions to, as the task's server takes them.

        Raises:
          UserError: there is no such file for this task or data, or nothing to score against and no file asked for.
        """
        inputs, records = self.open_eval(name, scored=results is None)
        scores: Scores = self.experiment.head.scores(records)
        if results is not None:
            scores.check_results()
        for batch, outputs in self.outputs(state.best_params, state.stats, inputs, records):
            scores.add(outputs, batch)
        if results is not None:
            scores.write_results(results)
        return {"images": len(records)} if records.unlabelled else scores.result()

    def draw(self, state: TrainState, name: str, path: Path, images: int = 12) -> None:
        """A picture of predictions for images spread evenly over an evaluation."""
        inputs, records = self.open_eval(name, scored=False)
        make = self._maker(inputs, records, seed=None)
        chosen = np.full(make.rows, -1)
        spread = np.unique(np.linspace(0, len(records) - 1, min(images, make.rows)).astype(int))
        chosen[:len(spread)] = spread
        batch = make.gather(chosen.tolist(), chosen.tolist())
        outputs = self.eval_step(state.best_params, state.stats, self.to_devices(batch))
        show = np.flatnonzero(batch["mask"])
        if jax.process_index() == 0:
            rows = meshes.rows_of_processes(self.mesh, inputs.batch_size)[show]
            with written(path) as file:
                self.experiment.head.draw(file, {k: v[show] for k, v in batch.items()},
                                          {k: np.asarray(v)[rows] for k, v in outputs.items()}, self.data.classes)

    def model(self, state: TrainState) -> nnx.Module:
        """The module with a state's parameters, for use by hand."""
        return merge(self.learner.graphdef, state.best_params, state.stats)


def _sharded(optimizer: optax.GradientTransformation, shardings: Tree) -> optax.GradientTransformation:
    """The optimiser over gradients that are spread as the parameters are: no device ever sums up whole ones."""
    def update(grads: Tree, state: Any, params: Tree = None):
        return optimizer.update(jax.lax.with_sharding_constraint(grads, shardings), state, params)

    return optax.GradientTransformation(optimizer.init, update)
