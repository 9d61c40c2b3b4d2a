"""An experiment made real: data opened, model built, functions jitted. Training and evaluation start here."""

from __future__ import annotations

import copy
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
from jax.sharding import NamedSharding

from big_vision_lite.data.curation.steps import ClassSubset, curated
from big_vision_lite.data.pipeline import BatchMaker, Input, Targets, batches
from big_vision_lite.data.resident import Kept, ResidentBatchMaker, keep
from big_vision_lite.data.source import Dataset, DatasetInfo
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.details import Details
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.head import Metrics
from big_vision_lite.system import cpu
from big_vision_lite.system.atomic import replacing
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.distributed import is_primary
from big_vision_lite.training.initial_weights import load_initial_weights
from big_vision_lite.training.step import TrainState, TrainStep, split
from big_vision_lite.training.trees import Tree


class Trainer:
    """The parts of one run on its devices.

    Args:
      data: a description of the training data, to evaluate a run where its data is missing. None: open the data.
      devices: of the run; None: all.

    Attributes:
      data: the training data, or its description; its classes are the model's.
      step: the functions of a step, not jitted.
      init_summary: summary of the loaded weights, after `init`.
      heartbeat: called for each batch that was made; for the watchdog.

    Raises:
      UserError: the experiment cannot run as it is. No step has been taken then.
    """

    def __init__(self, experiment: Experiment, data: DatasetInfo | None = None, devices: Sequence[Any] | None = None):
        self.experiment = experiment
        self.mesh = experiment.mesh.build(devices)
        meshes.check_batch("train", experiment.train.batch_size, self.mesh, experiment.grad_accum_steps)
        for name, inputs in experiment.evals.items():
            meshes.check_batch(f"evals.{name}", inputs.batch_size, self.mesh)
        transfer = experiment.transfer
        optimizer = transfer.optimizer(experiment.optimizer.build(experiment.steps))
        self.data = experiment.train.open() if data is None else data
        if self.data.unlabelled and experiment.head.needs_labels:
            raise UserError(f"the images of train ({type(experiment.train.source).__name__}) have no annotations, so "
                            "nothing can be learnt from them; give the annotations of another split")
        self._evals: dict[str, Dataset] = {}
        self._scorable: set[str] = set()
        self._kept: list[tuple[Input, Kept]] = []
        self.init_summary: str | None = None
        self.heartbeat: Callable[[], None] = lambda: None
        graphdef, params, _ = split(nnx.eval_shape(self._build))
        transfer.check(params)
        if self.mesh.shape["fsdp"] > 1:
            optimizer = _sharded(optimizer, meshes.state_shardings(params, self.mesh))
        self.step = TrainStep(graphdef, experiment.head, optimizer, experiment.grad_accum_steps, experiment.ema,
                              transfer.frozen if transfer.freeze else None, unroll=self.on_cpu)

    def _build(self) -> nnx.Module:
        rngs = nnx.Rngs(self.experiment.seed)
        model = self.experiment.head.build(self.experiment.backbone.build(rngs), self.data, rngs)
        self.experiment.transfer.fix_running_stats(model)
        return model

    def _random_state(self) -> TrainState:
        return self.step.init(*split(self._build())[1:])

    def with_seed(self, seed: int) -> Trainer:
        """The trainer of the same experiment with another seed. Both share what they have opened, kept and compiled."""
        for name in ("state_spec", "train_step", "eval_step", "feature_step"):
            getattr(self, name)  # made now, to be shared
        other = copy.copy(self)
        other.experiment = dataclasses.replace(self.experiment, seed=seed)
        return other

    @cached_property
    def state_spec(self) -> TrainState:
        """Shape, dtype and sharding of each array of the state."""
        shapes = jax.eval_shape(self._random_state)
        return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                            shapes, meshes.state_shardings(shapes, self.mesh))

    def random_init(self) -> TrainState:
        """A state with random parameters, created on the devices."""
        # XLA's CPU compiler would take half a minute to optimise random numbers that are drawn once.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(self._random_state, out_shardings=self._shardings, compiler_options=options)()

    def init(self) -> TrainState:
        """The state at step 0: random, with the weights that the experiment starts from."""
        state, transfer = self.random_init(), self.experiment.transfer
        if transfer.init is None:
            return state
        params, batch_stats, self.init_summary = load_initial_weights(
            transfer, state.params, state.batch_stats, getattr(self.experiment.backbone, "pixels", None))
        ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
        return dataclasses.replace(state, params=params, batch_stats=batch_stats, ema_params=ema_params)

    @property
    def _shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state_spec)

    @property
    def on_cpu(self) -> bool:
        """Whether this run's devices are CPUs."""
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def compiler_options(self) -> dict[str, str] | None:
        """For programs on this run's devices."""
        return cpu.settings().options or None if self.on_cpu else None

    @cached_property
    def train_step(self):
        """``(state, batch) -> (state, metrics)``, jitted; the old state's memory is reused."""
        return jax.jit(self.step.train_step, donate_argnums=0, out_shardings=self.step_shardings,
                       compiler_options=self.compiler_options)

    @property
    def step_shardings(self) -> tuple[TrainState, NamedSharding]:
        """Of the state and the metrics that a step computes."""
        return self._shardings, meshes.replicated(self.mesh)

    @cached_property
    def eval_step(self):
        """``(params, batch_stats, batch) -> outputs``, jitted; every process gets all rows."""
        return jax.jit(self.step.eval_step, out_shardings=meshes.replicated(self.mesh),
                       compiler_options=self.compiler_options)

    @cached_property
    def feature_step(self):
        """``(params, batch_stats, images) -> features``, jitted; every process gets all rows."""
        return jax.jit(self.step.features, out_shardings=meshes.replicated(self.mesh),
                       compiler_options=self.compiler_options)

    def open_eval(self, name: str, scored: bool = True) -> tuple[Input, Dataset]:
        """Input and data of an evaluation.

        Raises:
          UserError: its classes are not the model's; or it is to be ``scored``, and has no annotations or nothing
            that counts.
        """
        inputs = self.experiment.evals[name]
        if name not in self._evals:
            self._evals[name] = self._restricted(inputs.open())
        dataset = self._evals[name]
        if scored and self._unscorable(dataset):
            raise UserError(f"the images of evals.{name} have no annotations to score predictions against; bvl "
                            "evaluate RUN --submission FILE writes a file for the task's server")
        ours, theirs = self.data.classes, dataset.classes
        if theirs != ours:
            index = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                         min(len(ours), len(theirs)))
            their_class, our_class = (repr(names[index]) if index < len(names) else "none" for names in (theirs, ours))
            raise UserError(f"evals.{name} has {len(theirs)} classes and training {len(ours)}; the first that differs "
                            f"is number {index}: {their_class}, expected {our_class}")
        if scored and name not in self._scorable:
            try:
                self.experiment.head.check_eval(dataset)
            except UserError as error:
                raise UserError(f"evals.{name}: {error}") from error
            self._scorable.add(name)
        return inputs, dataset

    def _unscorable(self, dataset: Dataset) -> bool:
        return dataset.unlabelled and self.experiment.head.needs_labels

    def _restricted(self, dataset: Dataset) -> Dataset:
        """An evaluation's data, restricted to the classes of the training data if the experiment restricts those."""
        restricted = any(isinstance(step, ClassSubset) for step in self.experiment.train.curate)
        if not restricted or set(self.data.classes) >= set(dataset.classes):
            return dataset
        shared = tuple(name for name in self.data.classes if name in set(dataset.classes))
        subset = ClassSubset(shared, "keep" if dataset.unlabelled else "drop")
        return curated(dataset, (subset,)) if shared else dataset

    def batches(self, inputs: Input, dataset: Dataset, seed: int | None, start: int = 0, stop: int | None = None,
                targets: Targets | None = None) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of batches ``start`` to ``stop``; by default one pass, with the head's targets.

        A batch depends on its number only: if a worker process dies, new ones make the batches that it has not made.

        Raises:
          UserError: worker processes die before they have made a batch.
        """
        maker = self.batch_maker(inputs, dataset, seed, targets)
        return self.stream(maker, start, len(maker) if stop is None else stop)

    def stream(self, maker: BatchMaker, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """As `batches`, of a maker."""
        inputs, restarted_at = maker.inputs, None
        while start < stop:
            try:
                for batch in batches(maker, start, stop):
                    self.heartbeat()
                    start += 1
                    yield batch
            except RuntimeError as error:
                if not inputs.workers or "terminated unexpectedly" not in str(error):
                    raise
                cause = str(error).partition(". ")[0]
                if restarted_at == start:
                    raise UserError(f"worker processes die before they have made batch {start}: {cause}; is there "
                                    f"memory for workers={inputs.workers}?") from error
                print(f"bvl: {cause}; new ones go on from batch {start}", file=sys.stderr)
                restarted_at = start

    def batch_maker(self, inputs: Input, dataset: Dataset, seed: int | None,
                    targets: Targets | None = None) -> BatchMaker:
        """Makes this process's rows. Images that are to be kept are decoded here, the first time.

        Raises:
          UserError: those do not fit into memory, or one cannot be decoded.
        """
        head = self.experiment.head
        arguments = inputs, targets or head.for_data(dataset).targets, seed, jax.process_index(), jax.process_count()
        if inputs.resident is None:
            return BatchMaker(dataset, *arguments)
        kept = next((kept for other, kept in self._kept if other == inputs), None)
        if kept is None:
            kept = keep(dataset, inputs, self.heartbeat)
            self._kept.append((inputs, kept))
        return ResidentBatchMaker(kept, dataset, *arguments, targets is None and head.fixed_targets)

    def to_devices(self, batch: dict[str, Any], axis: int = 0) -> dict[str, Any]:
        """A batch as global arrays, whose rows are along ``axis``, without "index", which only the host needs."""
        return meshes.to_devices({k: v for k, v in batch.items() if k != "index"}, self.mesh, axis)

    def predictions(self, params: Tree, batch_stats: Tree, inputs: Input,
                    dataset: Dataset) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Each batch of an evaluation with the head's outputs for it, as `to_host` gives them."""
        previous = None
        for batch in self.batches(inputs, dataset, seed=None):
            outputs = self.eval_step(params, batch_stats, self.to_devices(batch))
            if previous:  # one batch behind, so that devices and host work at the same time
                yield self.to_host(*previous)
            previous = batch, outputs
        if previous:
            yield self.to_host(*previous)

    def to_host(self, batch: dict[str, np.ndarray], outputs: Any) -> tuple[dict[str, np.ndarray], Any]:
        """A global batch and what was computed from it, on the host; "image" has this process's rows only."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            small = {k: v for k, v in batch.items() if k != "image"}
            gathered = multihost_utils.process_allgather(small, tiled=True)
            order = np.argsort(meshes.rows_of_processes(self.mesh, len(gathered["mask"])))
            batch = {**{k: v[order] for k, v in gathered.items()}, "image": batch["image"]}
        return batch, jax.tree.map(np.asarray, outputs)

    def score(self, state: TrainState, name: str, submission: Path | None = None,
              details: dict[str, Details] | None = None,
              advance: Callable[[int], None] = lambda images: None) -> dict[str, float | None]:
        """Metrics of one evaluation; only "images" where the data has no annotations, None for those that do not exist.

        Args:
          submission: file for the predictions, in the format of the task's server.
          details: gets `Metrics.details` by the evaluation's name.
          advance: called with the number of images of each batch that was scored.

        Raises:
          UserError: the task or data has no such format; or no annotations and no ``submission``.
        """
        inputs, dataset = self.open_eval(name, scored=submission is None)
        metrics: Metrics = self.experiment.head.metrics(dataset)
        if submission is not None:
            metrics.check_results()
        for batch, outputs in self.predictions(state.eval_params, state.batch_stats, inputs, dataset):
            metrics.add(outputs, batch)
            advance(int(batch["mask"].sum()))
        if submission is not None:
            metrics.write_results(submission)
        if self._unscorable(dataset):
            return {"images": len(dataset)}
        if details is not None:
            details[name] = metrics.details()
        return metrics.result()

    def draw(self, state: TrainState, name: str, path: Path, images: int = 12) -> None:
        """Draw predictions for images spread evenly over an evaluation."""
        inputs, dataset = self.open_eval(name, scored=False)
        maker = self.batch_maker(inputs, dataset, seed=None)
        indices = np.full(maker.rows, -1)
        spread = np.unique(np.linspace(0, len(dataset) - 1, min(images, maker.rows)).astype(int))
        indices[:len(spread)] = spread
        batch = maker.gather(indices.tolist(), indices.tolist())
        outputs = self.eval_step(state.eval_params, state.batch_stats, self.to_devices(batch))
        if is_primary():
            valid = np.flatnonzero(batch["mask"])
            rows = meshes.rows_of_processes(self.mesh, inputs.batch_size)[valid]
            with replacing(path) as file:
                self.experiment.head.draw(file, {k: v[valid] for k, v in batch.items()},
                                          {k: np.asarray(v)[rows] for k, v in outputs.items()}, self.data.classes)


def _sharded(optimizer: optax.GradientTransformation, shardings: Tree) -> optax.GradientTransformation:
    """The optimiser with gradients sharded as the parameters are: no device ever holds whole ones."""
    def update(grads: Tree, state: Any, params: Tree = None):
        return optimizer.update(jax.lax.with_sharding_constraint(grads, shardings), state, params)

    return optax.GradientTransformation(optimizer.init, update)
