"""The state of a run and the one step that changes it: pure functions of arrays, for any task.

The model is split once into its structure (``graphdef``) and its arrays; inside a step it is merged anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from big_vision_lite.heads.head import Batch, Head

Tree = Any
"""Nested dicts of arrays, or of what describes them (shapes, shardings)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: Any
    """int32 scalar: steps done."""
    params: Tree
    """What is learnt, float32."""
    stats: Tree
    """What is kept beside it: BatchNorm's running statistics."""
    optimizer: Any
    """The state of optax's chain."""
    average: Tree
    """Moving average of the parameters, where the experiment asks for one, or None."""

    @property
    def best_params(self) -> Tree:
        """The parameters that evaluation uses."""
        return self.params if self.average is None else self.average


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """Structure, parameters and other arrays of a model, the arrays as nested dicts."""
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def merge(graphdef: nnx.GraphDef, params: Tree, stats: Tree) -> nnx.Module:
    """A model over these arrays; what it does to itself stays within it."""
    # copy=True: a model that is changed under differentiation must own its variables.
    return nnx.merge(graphdef, params, stats, copy=True)


@dataclasses.dataclass(frozen=True)
class Learner:
    """The static part of a run: what a step is made of beside the arrays."""

    graphdef: nnx.GraphDef
    head: Head
    optimizer: optax.GradientTransformation
    accumulate: int = 1
    ema: float | None = None
    frozen: Callable[[Tree], Tree] | None = None
    """For each parameter, whether it is a constant: then nothing is computed for its gradient."""
    apart: jax.sharding.Mesh | None = None
    """Devices that each compute the gradient of their own rows, of which the sum is taken in one message. None: as XLA
    likes, which for CPUs is a message an array. The same up to rounding where no example's loss depends on an example
    of another device."""

    def init(self, params: Tree, stats: Tree) -> TrainState:
        average = None if self.ema is None else params
        return TrainState(jnp.zeros((), jnp.int32), params, stats, self.optimizer.init(params), average)

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One optimiser step on a global batch; also the batch's figures, means over its unmasked examples."""
        grads, stats, metrics = self.gradient(state.params, state.stats, batch)
        updates, optimizer = self.optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if self.ema is not None:
            average = jax.tree.map(lambda a, p: self.ema * a + (1.0 - self.ema) * p, average, params)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, stats, optimizer, average), metrics

    def gradient(self, params: Tree, stats: Tree, batch: Batch) -> tuple[Tree, Tree, dict[str, Array]]:
        """Gradient of the mean loss over unmasked examples, new statistics, and figures; in pieces if asked."""
        if self.apart is None:
            total = jnp.maximum(batch["mask"].astype(jnp.float32).sum(), 1.0)
            return self._gradient(params, stats, batch, total)
        mesh, rows, whole = self.apart, PartitionSpec(self.apart.axis_names), PartitionSpec()

        def own(params: Tree, stats: Tree, batch: Batch):
            grads, stats, figures = self._gradient(params, stats, batch, 1.0)
            stats = jax.tree.map(lambda leaf: leaf / mesh.size, stats)
            flat, back = ravel_pytree((grads, stats, figures, batch["mask"].astype(jnp.float32).sum()))
            grads, stats, figures, total = back(jax.lax.psum(flat, mesh.axis_names))
            grads, figures = jax.tree.map(lambda leaf: leaf / jnp.maximum(total, 1.0), (grads, figures))
            return grads, stats, figures

        return jax.shard_map(own, mesh=mesh, in_specs=(whole, whole, rows), out_specs=whole,
                             check_vma=False)(params, stats, batch)

    def _gradient(self, params: Tree, stats: Tree, batch: Batch,
                  total: Array | float) -> tuple[Tree, Tree, dict[str, Array]]:
        """Of the sum of the loss over unmasked examples, divided by ``total``."""
        def piece(stats: Tree, batch: Batch):
            def loss_of(params: Tree):
                if self.frozen is not None:
                    params = jax.tree.map(lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params,
                                          self.frozen(params))
                model = merge(self.graphdef, params, stats)
                losses, figures = self.head.loss(model, batch)
                weight = batch["mask"].astype(jnp.float32) / total
                figures = {k: (v * weight).sum() for k, v in {"loss": losses, **figures}.items()}
                return figures["loss"], (split(model)[2], figures)

            grads, (new_stats, figures) = jax.grad(loss_of, has_aux=True)(params)
            return grads, new_stats, figures

        if self.accumulate == 1:
            return piece(stats, batch)

        def add(carry, batch: Batch):
            grads, stats, figures = carry
            more_grads, stats, more_figures = piece(stats, batch)
            grads, figures = jax.tree.map(jnp.add, (grads, figures), (more_grads, more_figures))
            return (grads, stats, figures), None

        # Piece j takes rows j, j + accumulate, ...: every device then finds all its pieces in its own rows.
        pieces = jax.tree.map(lambda x: x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        first = jax.tree.map(lambda x: x[0], pieces)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(piece, stats, first))
        (grads, stats, figures), _ = jax.lax.scan(add, (zeros[0], stats, zeros[2]), pieces)
        return grads, stats, figures

    def eval_step(self, params: Tree, stats: Tree, batch: Batch) -> dict[str, Array]:
        """The head's outputs for a batch, in inference mode."""
        return self.head.outputs(merge(self.graphdef, params, stats), batch)
