"""Arithmetic of boxes: float32 (x1, y1, x2, y2) in pixels, from edge to edge."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

MAX_LOG_SCALE = math.log(1000 / 16)
"""Limit for decoded logs of size factors: a box of 16 pixels grows to at most 1000."""

Weights = tuple[float, float, float, float]
"""Factors that bring the offsets (dx, dy, dw, dh) to about unit size."""


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """The area shared by each box of ``a`` with each of ``b``."""
    a = a[:, None]
    width = jnp.minimum(a[..., 2], b[:, 2]) - jnp.maximum(a[..., 0], b[:, 0])
    height = jnp.minimum(a[..., 3], b[:, 3]) - jnp.maximum(a[..., 1], b[:, 1])
    return jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)


def iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union; 0 where both boxes are empty."""
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b) - shared
    return shared / jnp.where(union > 0, union, 1.0)


def encode(boxes: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], weights: Weights) -> Float[Array, "*n 4"]:
    """The offsets that move anchors onto boxes: shift of the centre in units of the anchor's size, and log of the ratio
    of sizes (Girshick et al. 2014, appendix C), times ``weights``. Both boxes need positive width and height."""
    center, size = _center_size(boxes)
    anchor_center, anchor_size = _center_size(anchors)
    deltas = jnp.concatenate([(center - anchor_center) / anchor_size, jnp.log(size / anchor_size)], -1)
    return deltas * jnp.asarray(weights, jnp.float32)


def decode(deltas: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], weights: Weights) -> Float[Array, "*n 4"]:
    """The inverse of `encode`, with growth limited by `MAX_LOG_SCALE`."""
    deltas = deltas / jnp.asarray(weights, jnp.float32)
    anchor_center, anchor_size = _center_size(anchors)
    center = deltas[..., :2] * anchor_size + anchor_center
    half = 0.5 * anchor_size * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE))
    return jnp.concatenate([center - half, center + half], -1)


def clip(boxes: Float[Array, "*n 4"], size: Int[Array, " 2"]) -> Float[Array, "*n 4"]:
    """Boxes clipped to an image of ``size`` (height, width)."""
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    return jnp.clip(boxes, 0.0, jnp.stack([width, height, width, height]))


def at_least(boxes: Float[Array, "*n 4"], side: float) -> Array:
    """Whether both width and height are at least ``side`` pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)


def _center_size(boxes: Array) -> tuple[Array, Array]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size
