"""Losses of whole images: pure functions that return one value per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


def multi_hot(labels: Int[Array, "b k"], num_classes: int) -> Float[Array, "b c"]:
    """1.0 for each class that occurs in a row of ``labels``, which is padded with -1."""
    # One-hot rather than scatter: with a sharded batch it needs no communication.
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32).max(1)


def soft_targets(candidates: Int[Array, "b k"], probabilities: Float[Array, "b k"],
                 num_classes: int) -> Float[Array, "b c"]:
    """The probability of each class; 0 for those that are not among a row's candidates, which are padded with -1."""
    one_hot = jax.nn.one_hot(candidates, num_classes, dtype=jnp.float32)
    return (one_hot * probabilities[:, :, None]).sum(1)


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


def unit(vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Vectors scaled to length 1; a zero stays zero, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.maximum((vectors**2).sum(-1, keepdims=True), 1e-24))


def nt_xent(embeddings: Float[Array, "v d"], mask: Bool[Array, " v"], temperature: float) -> Float[Array, " v"]:
    """The normalised, temperature-scaled cross-entropy of each view (Chen et al. 2020, equation 1). Under `jax.jit`,
    the other images are those of the global batch.

    Args:
      embeddings: of length 1; rows 2i and 2i + 1 are the two views of image i.
      mask: False for views that do not count, neither as examples, for which the loss is 0, nor as negatives.
    """
    logits = _similarities(embeddings, mask) / temperature
    partner = jnp.take_along_axis(logits, _partners(embeddings)[:, None], axis=1)[:, 0]
    return jnp.where(mask, jax.nn.logsumexp(logits, axis=1) - jnp.where(mask, partner, 0.0), 0.0)


def view_match(embeddings: Float[Array, "v d"], mask: Bool[Array, " v"]) -> Bool[Array, " v"]:
    """Whether the nearest of all other views is that of the same image; arguments as of `nt_xent`."""
    return mask & (_similarities(embeddings, mask).argmax(1) == _partners(embeddings))


def _partners(embeddings: Array) -> Int[Array, " v"]:
    return jnp.arange(len(embeddings)) ^ 1


def _similarities(embeddings: Float[Array, "v d"], mask: Bool[Array, " v"]) -> Float[Array, "v v"]:
    """Cosines of all pairs; -inf for pairs that do not count."""
    rows = jnp.arange(len(embeddings))
    cosines = jnp.matmul(embeddings, embeddings.T, precision=jax.lax.Precision.HIGHEST)
    # A masked view has itself, so that its softmax, which is not used, is finite.
    counts = jnp.where(rows[:, None] == rows[None, :], ~mask[None, :], mask[None, :])
    return jnp.where(counts, cosines, -jnp.inf)


def embedding_std(embeddings: Float[Array, "v d"], mask: Bool[Array, " v"]) -> Float[Array, ""]:
    """Standard deviation over views, averaged over dimensions, times sqrt(d): 1 where embeddings of length 1 point in
    all directions alike, 0 where they are all the same, that is, collapsed (Chen and He 2021, section 4.1)."""
    weight = mask.astype(jnp.float32)[:, None] / jnp.maximum(mask.sum(), 1)
    mean = (weight * embeddings).sum(0, keepdims=True)
    variance = (weight * (embeddings - mean) ** 2).sum(0)
    return jnp.sqrt(jnp.maximum(variance, 0.0)).mean() * embeddings.shape[1] ** 0.5
