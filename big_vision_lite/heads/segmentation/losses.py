"""The loss of segmentation: a pure function that returns one value an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.data.joint_transforms import VOID


def pixel_loss(scores: Float[Array, "b h w k"], mask: UInt8[Array, "b h w"],
               hardest: float = 1.0) -> Float[Array, " b"]:
    """Cross-entropy of the softmax over classes and background, averaged over an image's pixels that are not void, or
    over that share of them, at least one, whose loss is highest. 0 for an image without such pixels."""
    scores = scores.astype(jnp.float32)
    # Comparison, not gather: its gradient has no scatter, so it is quick and the same on every run of a GPU.
    chosen = (scores * jax.nn.one_hot(mask, scores.shape[-1], dtype=jnp.float32)).sum(-1)
    losses = jax.nn.logsumexp(scores, -1) - chosen
    return mean_over_pixels(losses, mask) if hardest == 1.0 else _mean_of_highest(losses, mask, hardest)


def pixel_accuracy(scores: Float[Array, "b h w k"], mask: UInt8[Array, "b h w"]) -> Float[Array, " b"]:
    """Share of an image's pixels, void ones left out, whose best class is theirs; 0 for an image without any."""
    return mean_over_pixels((jnp.argmax(scores, -1) == mask.astype(jnp.int32)).astype(jnp.float32), mask)


def mean_over_pixels(values: Float[Array, "b h w"], mask: UInt8[Array, "b h w"]) -> Float[Array, " b"]:
    counted = mask != VOID
    return jnp.where(counted, values, 0.0).sum((1, 2)) / jnp.maximum(counted.astype(jnp.float32).sum((1, 2)), 1.0)


def _mean_of_highest(values: Float[Array, "b h w"], mask: UInt8[Array, "b h w"], share: float) -> Float[Array, " b"]:
    flat = jnp.where(mask != VOID, values, -jnp.inf).reshape(len(values), -1)
    counted = (mask != VOID).sum((1, 2))
    taken = jnp.maximum(jnp.ceil(share * counted.astype(jnp.float32)).astype(jnp.int32), 1)
    # The gradient goes by weights, not through the sorting; values equal to the lowest that is taken share its place.
    fixed = jax.lax.stop_gradient(flat)
    lowest = jnp.take_along_axis(jnp.sort(fixed, axis=1, descending=True), taken[:, None] - 1, axis=1)
    above, equal = fixed > lowest, fixed == lowest
    left = taken - above.sum(1)
    weights = above.astype(jnp.float32) + equal.astype(jnp.float32) * (
        left.astype(jnp.float32) / equal.astype(jnp.float32).sum(1))[:, None]
    kept = jnp.where(jnp.isfinite(flat), flat, 0.0)  # an image without pixels has nothing but those
    return (weights * kept).sum(1) / taken.astype(jnp.float32)
