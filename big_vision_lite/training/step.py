"""The state of a run and the one step that changes it: pure functions of arrays, for any task.

The model is split once into its structure (``graphdef``) and its arrays; each step merges them again.
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

from big_vision_lite.heads.head import Batch, Head
from big_vision_lite.training.trees import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: Any
    """Steps done: an int32 scalar."""
    params: Tree
    """Trainable parameters, float32."""
    batch_stats: Tree
    """Non-trainable state: BatchNorm's running statistics."""
    optimizer: Any
    """State of the optax chain."""
    ema_params: Tree
    """Moving average of the parameters; None where the experiment has none."""

    @property
    def eval_params(self) -> Tree:
        """The parameters that evaluation uses."""
        return self.params if self.ema_params is None else self.ema_params


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """Structure, parameters and other arrays of a model, the arrays as nested dicts."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def merge(graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree) -> nnx.Module:
    """A model over these arrays. Its updates of its own variables do not reach them."""
    # copy=True: a model that is changed under differentiation must own its variables.
    return nnx.merge(graphdef, params, batch_stats, copy=True)


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A training step; its fields are what is static, its methods are pure functions of arrays."""

    graphdef: nnx.GraphDef
    head: Head
    optimizer: optax.GradientTransformation
    grad_accum_steps: int = 1
    ema: float | None = None
    frozen: Callable[[Tree], Tree] | None = None
    """Tells for each parameter whether it is constant; no gradient is computed for those."""
    unroll: bool = False
    """Write micro-batches out instead of looping over them: on CPUs, XLA computes convolutions in loops on one core
    and slowly, at less than a twentieth of the speed."""

    def init(self, params: Tree, batch_stats: Tree) -> TrainState:
        ema_params = None if self.ema is None else params
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, self.optimizer.init(params), ema_params)

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One optimiser step on a global batch. Also returns metrics: means over the batch's unmasked examples."""
        grads, batch_stats, metrics = self.gradient(state.params, state.batch_stats, batch)
        updates, optimizer = self.optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if self.ema is not None:
            ema_params = jax.tree.map(lambda a, p: self.ema * a + (1.0 - self.ema) * p, ema_params, params)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, batch_stats, optimizer, ema_params), metrics

    def gradient(self, params: Tree, batch_stats: Tree, batch: Batch) -> tuple[Tree, Tree, dict[str, Array]]:
        """Gradient of the mean loss over unmasked examples, new ``batch_stats``, and metrics."""
        total = jnp.maximum(batch["mask"].astype(jnp.float32).sum(), 1.0)

        def micro_step(batch_stats: Tree, batch: Batch):
            def loss_of(params: Tree):
                if self.frozen is not None:
                    params = jax.tree.map(lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params,
                                          self.frozen(params))
                model = merge(self.graphdef, params, batch_stats)
                losses, metrics = self.head.loss(model, batch)
                weight = batch["mask"].astype(jnp.float32) / total
                metrics = {k: (v * weight).sum() for k, v in {"loss": losses, **metrics}.items()}
                return metrics["loss"], (split(model)[2], metrics)

            grads, (new_stats, metrics) = jax.grad(loss_of, has_aux=True)(params)
            return grads, new_stats, metrics

        if self.grad_accum_steps == 1:
            return micro_step(batch_stats, batch)

        def accumulate(carry, batch: Batch):
            grads, batch_stats, metrics = carry
            more_grads, batch_stats, more_metrics = micro_step(batch_stats, batch)
            grads, metrics = jax.tree.map(jnp.add, (grads, metrics), (more_grads, more_metrics))
            return (grads, batch_stats, metrics), None

        # Micro-batch j takes rows j, j + grad_accum_steps, ...: each device finds its rows of all of them on itself.
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, self.grad_accum_steps, *x.shape[1:]).swapaxes(0, 1), batch)
        first = jax.tree.map(lambda x: x[0], micro_batches)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(micro_step, batch_stats, first))
        (grads, batch_stats, metrics), _ = jax.lax.scan(accumulate, (zeros[0], batch_stats, zeros[2]), micro_batches,
                                                          unroll=self.unroll)
        return grads, batch_stats, metrics

    def eval_step(self, params: Tree, batch_stats: Tree, batch: Batch) -> dict[str, Array]:
        """The head's predictions for a batch, in inference mode."""
        return self.head.predict(merge(self.graphdef, params, batch_stats), batch)

    def features(self, params: Tree, batch_stats: Tree, images: Array) -> Array:
        """float32 ``[b, channels]``: the spatial mean of the backbone's last stage, in inference mode."""
        backbone = merge(self.graphdef, params, batch_stats).backbone
        return backbone(images, train=False)[-1].astype(jnp.float32).mean((1, 2))
