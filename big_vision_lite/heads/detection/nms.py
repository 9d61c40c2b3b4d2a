"""Non-maximum suppression in fixed shapes, exactly equal to the sequential algorithm."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from big_vision_lite.heads.detection.boxes import iou


def nms(boxes: Float[Array, "n 4"], valid: Bool[Array, " n"], threshold: float,
        groups: Int[Array, " n"] | None = None, tile: int = 256) -> Bool[Array, " n"]:
    """Which boxes to keep: going down the list, every valid one whose IoU with each kept one is at most ``threshold``.

    Args:
      boxes: by falling score.
      valid: the others are neither kept nor suppress.
      groups: only boxes of the same group, such as a class, suppress each other.
      tile: boxes decided at a time. Suppression by earlier tiles is one reduction; within a tile, decisions are
        repeated until they no longer change. After k rounds the first k are final, so this ends with the sequential
        result, usually after as many rounds as the longest chain of overlaps.
    """
    count = boxes.shape[0]
    tile = min(tile, count)
    padding = -count % tile
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    valid = jnp.pad(valid, (0, padding))
    groups = None if groups is None else jnp.pad(groups, (0, padding))
    order = jnp.arange(tile)

    def overlap(a: Array, b: Array, groups_a: Array | None, groups_b: Array | None) -> Array:
        overlaps = iou(a, b) > threshold
        return overlaps if groups_a is None else overlaps & (groups_a[:, None] == groups_b)

    def decide(start: Array, keep: Array) -> Array:
        own, stays = lax.dynamic_slice_in_dim(boxes, start, tile), lax.dynamic_slice_in_dim(valid, start, tile)
        group = None if groups is None else lax.dynamic_slice_in_dim(groups, start, tile)
        # Boxes of later tiles are not kept yet, so they suppress nothing.
        if count > tile:
            stays &= ~(overlap(boxes, own, groups, group) & keep[:, None]).any(0)
        within = overlap(own, own, group, group) & (order[:, None] < order)

        def decide_again(state):
            old, _ = state
            new = stays & ~(within & old[:, None]).any(0)
            return new, (new != old).any()

        stays, _ = lax.while_loop(lambda state: state[1], decide_again, (stays, jnp.array(True)))
        return lax.dynamic_update_slice_in_dim(keep, stays, start, 0)

    keep = lax.fori_loop(0, (count + padding) // tile, lambda i, keep: decide(i * tile, keep),
                         jnp.zeros(count + padding, bool))
    return keep[:count]
