"""Which anchors and proposals learn from which object, and which of them a step looks at: all in fixed shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from big_vision_lite.heads.detection.boxes import area, intersection, iou

PADDING, OBJECT, IGNORED = 0, 1, 2
"""Kinds of rows among the boxes of an image: none, an object to find, a region about which nothing is said."""


def match(boxes: Float[Array, "n 4"], candidates: Bool[Array, " n"], truth: Float[Array, "g 4"],
          kind: Int[Array, " g"], low: float, high: float,
          low_quality: bool) -> tuple[Int[Array, " n"], Bool[Array, " n"], Bool[Array, " n"]]:
    """Matches anchors or proposals to objects by IoU (Ren et al. 2015, section 3.1.2).

    Args:
      boxes: anchors or proposals.
      candidates: those that take part.
      truth, kind: boxes of the image; see `OBJECT`. Where an ignored region covers more than half of a box, that is
        not a negative: there may be objects that nobody outlined.
      low, high: below ``low`` a box is negative, from ``high`` on positive, between neither.
      low_quality: also the boxes that overlap an object best of all, however little, are positive.

    Returns:
      Row of the object that overlaps each box best; which boxes are positive; which are negative.
    """
    is_object = kind == OBJECT
    # Rows without an object overlap nothing; -1 keeps them apart from objects that no anchor reaches.
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
    """A random choice of at most ``fraction * count`` positives, filled up to ``count`` with negatives.

    Returns:
      ``count`` indices (or all n of fewer); whether each was chosen (the others only fill the shape); whether it is
      positive.
    """
    noise = jax.random.uniform(key, positive.shape)
    total = positive.shape[0]
    most = min(int(count * fraction), total)
    first, first_chosen = _largest(jnp.where(positive, noise, -1.0), most)
    rest, rest_chosen = _largest(jnp.where(negative, noise, -1.0), min(count, total))
    rest_chosen &= jnp.arange(rest.shape[0]) < count - first_chosen.sum()
    indices, chosen = jnp.concatenate([first, rest]), jnp.concatenate([first_chosen, rest_chosen])
    order = jnp.argsort(~chosen, stable=True)[:min(count, total)]
    return indices[order], chosen[order], positive[indices[order]]


def _largest(values: Array, count: int) -> tuple[Array, Array]:
    top, indices = lax.top_k(values, count)
    return indices, top >= 0
