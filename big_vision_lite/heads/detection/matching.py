"""Matching anchors and proposals to objects, and sampling them, in fixed shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from big_vision_lite.heads.detection.boxes import area, intersection, iou

PADDING, OBJECT, IGNORED = 0, 1, 2
"""Kinds of rows among the boxes of an image: an empty slot, an object, an ignore region."""


def match(boxes: Float[Array, "n 4"], candidates: Bool[Array, " n"], truth: Float[Array, "g 4"],
          kind: Int[Array, " g"], low: float, high: float,
          low_quality: bool) -> tuple[Int[Array, " n"], Bool[Array, " n"], Bool[Array, " n"]]:
    """Match anchors or proposals to objects by IoU (Ren et al. 2015, section 3.1.2).

    Args:
      boxes: anchors or proposals.
      candidates: which of them take part.
      truth, kind: annotated boxes and their kinds, see `OBJECT`. A box more than half covered by an ignore region is no
        negative: it may hold objects that were not annotated.
      low, high: a box is negative below ``low``, positive from ``high`` up, and neither in between.
      low_quality: whether the boxes that overlap an object best, however little, are positive too.

    Returns:
      For each box, the row of the object that overlaps it best, whether it is positive, and whether it is negative.
    """
    is_object = kind == OBJECT
    # -1 tells rows without an object from objects that no anchor overlaps.
    quality = jnp.where(is_object[:, None], iou(truth, boxes), -1.0)
    best, matched = quality.max(0), quality.argmax(0)
    positive = best >= high
    if low_quality:
        quality = jnp.where(candidates, quality, -1.0)
        best_of_object = quality.max(1, keepdims=True)
        positive |= ((quality == best_of_object) & (best_of_object > 0)).any(0)
    covered = jnp.where((kind == IGNORED)[:, None], intersection(truth, boxes), 0.0).max(0) > 0.5 * area(boxes)
    return matched.astype(jnp.int32), positive & candidates, (best < low) & ~positive & ~covered & candidates


def sample(key: Array, positive: Bool[Array, " n"], negative: Bool[Array, " n"], count: int,
           fraction: float) -> tuple[Int[Array, " k"], Bool[Array, " k"], Bool[Array, " k"]]:
    """A random sample of at most ``fraction * count`` positives, filled up to ``count`` with negatives.

    Returns:
      ``min(count, n)`` indices; whether each is in the sample (the others only fill the shape), and is positive.
    """
    # Positives first, then negatives, each in random order, by one sort, because sorts compile slowly; of integers,
    # which compare in one operation. The bits are those of `jax.random.uniform`.
    noise = (jax.random.bits(key, positive.shape, jnp.uint32) >> 9).astype(jnp.int32)
    kind = jnp.where(positive, 0, jnp.where(negative, 1 << 23, 2 << 23))
    total = positive.shape[0]
    order = lax.sort((kind - noise + (1 << 23), lax.iota(jnp.int32, total)), num_keys=2)[1]
    row, found = jnp.arange(min(count, total)), positive.sum()
    positives = jnp.minimum(found, int(count * fraction))
    indices = order[jnp.minimum(jnp.where(row < positives, row, row + found - positives), total - 1)]
    return indices, row < positives + negative.sum(), row < positives
