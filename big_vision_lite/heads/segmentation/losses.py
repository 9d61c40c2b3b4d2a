"""The loss of segmentation: a pure function that returns one value an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.data.joint_transforms import VOID


def pixel_loss(scores: Float[Array, "b h w k"], mask: UInt8[Array, "b h w"]) -> Float[Array, " b"]:
    """Cross-entropy of the softmax over classes and background, averaged over an image's pixels that are not void.
    0 for an image of which all are."""
    scores = scores.astype(jnp.float32)
    # Comparison, not gather: its gradient has no scatter, so it is quick and the same on every run of a GPU.
    chosen = (scores * jax.nn.one_hot(mask, scores.shape[-1], dtype=jnp.float32)).sum(-1)
    return mean_over_pixels(jax.nn.logsumexp(scores, -1) - chosen, mask)


def pixel_accuracy(scores: Float[Array, "b h w k"], mask: UInt8[Array, "b h w"]) -> Float[Array, " b"]:
    """Share of an image's pixels, void ones left out, whose best class is theirs; 0 for an image without any."""
    return mean_over_pixels((jnp.argmax(scores, -1) == mask.astype(jnp.int32)).astype(jnp.float32), mask)


def mean_over_pixels(values: Float[Array, "b h w"], mask: UInt8[Array, "b h w"]) -> Float[Array, " b"]:
    counted = mask != VOID
    return jnp.where(counted, values, 0.0).sum((1, 2)) / jnp.maximum(counted.astype(jnp.float32).sum((1, 2)), 1.0)
