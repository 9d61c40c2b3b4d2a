"""Losses of classification: pure functions that return one value per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def multi_hot(labels: Int[Array, "b k"], num_classes: int) -> Float[Array, "b c"]:
    """1.0 for each class that occurs in a row of ``labels``, which is padded with -1."""
    # One-hot rather than scatter: with a sharded batch it needs no communication.
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32).max(1)


def sigmoid_loss(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, " b"]:
    """Logistic loss per label, summed over classes (Sun et al. 2017, section 3): an image may have any number of
    labels, and every absent one is a negative."""
    return (jax.nn.softplus(logits) - logits * targets).sum(-1)


def softmax_loss(logits: Float[Array, "b c"], targets: Float[Array, "b c"],
                 smoothing: float = 0.0) -> Float[Array, " b"]:
    """Cross-entropy of the softmax against ``targets`` normalised to sum 1, with label smoothing (Szegedy et al. 2016).
    0 for a row without targets."""
    count = targets.sum(-1, keepdims=True)
    targets = targets / jnp.maximum(count, 1.0)
    targets = jnp.where(count > 0, targets * (1.0 - smoothing) + smoothing / logits.shape[-1], 0.0)
    return -(targets * jax.nn.log_softmax(logits)).sum(-1)
