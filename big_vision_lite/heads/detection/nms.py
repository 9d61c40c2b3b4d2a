"""Non-maximum suppression in fixed shapes, equal to the sequential definition at every threshold."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from big_vision_lite.heads.detection.boxes import iou


def suppress(boxes: Float[Array, "n 4"], valid: Bool[Array, " n"], threshold: float,
             groups: Int[Array, " n"] | None = None, tile: int = 256) -> Bool[Array, " n"]:
    """Which boxes stay: going down the list, every valid one whose IoU with each that stayed is at most ``threshold``.

    Args:
      boxes: by falling score.
      valid: the others neither stay nor suppress.
      groups: boxes of different groups do not suppress each other, such as those of different classes.
      tile: boxes that are decided at a time. Suppression by earlier tiles is one reduction; within a tile the
        decisions are repeated until they no longer change. The first k are final after k rounds, so that the
        end is the sequential result; mostly it takes as many rounds as the longest chain of overlaps.
    """
    count = boxes.shape[0]
    tile = min(tile, count)
    padding = -count % tile
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    valid = jnp.pad(valid, (0, padding))
    groups = None if groups is None else jnp.pad(groups, (0, padding))
    order = jnp.arange(tile)

    def overlap(a: Array, b: Array, groups_a: Array | None, groups_b: Array | None) -> Array:
        found = iou(a, b) > threshold
        return found if groups_a is None else found & (groups_a[:, None] == groups_b)

    def decide(start: Array, keep: Array) -> Array:
        mine, stays = lax.dynamic_slice_in_dim(boxes, start, tile), lax.dynamic_slice_in_dim(valid, start, tile)
        group = None if groups is None else lax.dynamic_slice_in_dim(groups, start, tile)
        # Boxes of later tiles are not kept yet, and so suppress nothing.
        if count > tile:
            stays &= ~(overlap(boxes, mine, groups, group) & keep[:, None]).any(0)
        within = overlap(mine, mine, group, group) & (order[:, None] < order)

        def again(state):
            now, _ = state
            new = stays & ~(within & now[:, None]).any(0)
            return new, (new != now).any()

        stays, _ = lax.while_loop(lambda state: state[1], again, (stays, jnp.array(True)))
        return lax.dynamic_update_slice_in_dim(keep, stays, start, 0)

    keep = lax.fori_loop(0, (count + padding) // tile, lambda i, keep: decide(i * tile, keep),
                         jnp.zeros(count + padding, bool))
    return keep[:count]
