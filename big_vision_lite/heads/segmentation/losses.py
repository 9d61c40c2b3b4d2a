"""The loss of segmentation: a pure function that returns one value per image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.data.masks import VOID


def pixel_loss(scores: Float[Array, "b h w k"], mask: UInt8[Array, "b h w"],
               ohem_fraction: float = 1.0) -> Float[Array, " b"]:
    """Cross-entropy of the softmax over classes and background, averaged over the pixels of an image that are not void,
    or over the ``ohem_fraction`` of them, at least one, with the highest loss. 0 for an image with only void."""
    scores = scores.astype(jnp.float32)
    # One-hot rather than gather: its gradient needs no scatter, which would be slow and nondeterministic on GPUs.
    true_scores = (scores * jax.nn.one_hot(mask, scores.shape[-1], dtype=jnp.float32)).sum(-1)
    losses = jax.nn.logsumexp(scores, -1) - true_scores
    return mean_over_pixels(losses, mask) if ohem_fraction == 1.0 else _mean_of_highest(losses, mask, ohem_fraction)


def pixel_accuracy(scores: Float[Array, "b h w k"], mask: UInt8[Array, "b h w"]) -> Float[Array, " b"]:
    """Share of the pixels of an image that are classified correctly, void ones left out; 0 for an image with only
    void."""
    return mean_over_pixels((jnp.argmax(scores, -1) == mask.astype(jnp.int32)).astype(jnp.float32), mask)


def mean_over_pixels(values: Float[Array, "b h w"], mask: UInt8[Array, "b h w"]) -> Float[Array, " b"]:
    counted = mask != VOID
    return jnp.where(counted, values, 0.0).sum((1, 2)) / jnp.maximum(counted.astype(jnp.float32).sum((1, 2)), 1.0)


def _mean_of_highest(values: Float[Array, "b h w"], mask: UInt8[Array, "b h w"], share: float) -> Float[Array, " b"]:
    flat = jnp.where(mask != VOID, values, -jnp.inf).reshape(len(values), -1)
    counted = (mask != VOID).sum((1, 2))
    selected = jnp.maximum(jnp.ceil(share * counted.astype(jnp.float32)).astype(jnp.int32), 1)
    # No gradient flows through the sorting, only through weights; values that tie for the last place share it.
    fixed = jax.lax.stop_gradient(flat)
    lowest = jnp.take_along_axis(jnp.sort(fixed, axis=1, descending=True), selected[:, None] - 1, axis=1)
    above, equal = fixed > lowest, fixed == lowest
    tied_places = selected - above.sum(1)
    weights = above.astype(jnp.float32) + equal.astype(jnp.float32) * (
        tied_places.astype(jnp.float32) / equal.astype(jnp.float32).sum(1))[:, None]
    finite = jnp.where(jnp.isfinite(flat), flat, 0.0)  # an image with only void has nothing but -inf
    return (weights * finite).sum(1) / selected.astype(jnp.float32)
