"""Region proposals: where objects may be (Ren et al. 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from big_vision_lite.backbones.conv import same_conv
from big_vision_lite.heads.detection.boxes import at_least, clip, decode, encode
from big_vision_lite.heads.detection.matching import match, sample
from big_vision_lite.heads.detection.nms import nms

WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_MIN_SIDE = 1e-3
"""In pixels; smaller proposals are dropped."""


class RPN(nnx.Module):
    """A 3x3 convolution, then an objectness logit and four offsets per anchor of a cell; shared by all maps."""

    def __init__(self, inputs: int, channels: int, anchors: int, dtype: DTypeLike, rngs: nnx.Rngs):
        conv = partial(same_conv, kernel_init=nnx.initializers.normal(0.01), dtype=dtype, rngs=rngs)
        self.conv = conv(inputs, channels, 3)
        self.objectness, self.offsets = conv(channels, anchors, 1), conv(channels, 4 * anchors, 1)

    def __call__(self, features: Sequence[Float[Array, "b _ _ c"]]) -> tuple[Float[Array, "b n"],
                                                                             Float[Array, "b n 4"]]:
        """float32 logits and offsets, by map and then in the order of `grid_anchors`."""
        batch = features[0].shape[0]
        # Cells of all maps as the rows of one image: one program for all of them.
        x = jnp.concatenate([nnx.relu(self.conv(x)).reshape(batch, -1, 1, self.conv.out_features) for x in features], 1)
        logits, deltas = (head(x).astype(jnp.float32) for head in (self.objectness, self.offsets))
        return logits.reshape(batch, -1), deltas.reshape(batch, -1, 4)


def within(anchors: Float[Array, "n 4"], size: Int[Array, " 2"]) -> Bool[Array, " n"]:
    """Whether an anchor's centre lies in the image of ``size`` (height, width); anchors in padding are ignored."""
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    return ((center >= 0) & (center < size[::-1].astype(jnp.float32))).all(-1)


def propose(logits: Float[Array, " n"], deltas: Float[Array, "n 4"], anchors: Float[Array, "n 4"],
            size: Int[Array, " 2"], counts: Sequence[int], pre_nms_topk: int, post_nms_topk: int,
            threshold: float) -> tuple[Float[Array, "p 4"], Bool[Array, " p"]]:
    """The proposals of one image, by falling objectness, without gradient.

    Args:
      logits, deltas, anchors: of all maps, one after another.
      size: (height, width) of the image without padding.
      counts: anchors of each map.
      pre_nms_topk: best anchors per map that are considered.
      post_nms_topk: proposals to return at most, over all maps.
      threshold: IoU for non-maximum suppression within each map.

    Returns:
      Boxes, and which of them are proposals; those come first, the others only fill the shape.
    """
    logits, deltas = lax.stop_gradient((logits, deltas))
    logits = jnp.where(within(anchors, size), logits, -jnp.inf)
    ranks, maps = _rows(counts, pre_nms_topk)
    best = _order(logits, counts)[ranks]
    boxes = clip(decode(deltas[best], anchors[best], WEIGHTS), size)
    scores = jnp.where(maps >= 0, logits[best], -jnp.inf)
    valid = jnp.isfinite(scores) & at_least(boxes, _MIN_SIDE)
    keep = jax.vmap(partial(nms, threshold=threshold))(boxes, valid, groups=jnp.asarray(maps))
    scores, kept = lax.top_k(jnp.where(keep, scores, -jnp.inf).ravel(), min(post_nms_topk, int((maps >= 0).sum())))
    return boxes.reshape(-1, 4)[kept], jnp.isfinite(scores)


def _order(logits: Float[Array, " n"], counts: Sequence[int]) -> Int[Array, " n"]:
    """The order of anchors by map, then by falling logit: one sort for all maps, because sorts compile slowly, and of
    integers, which compare in one operation."""
    bits = lax.bitcast_convert_type(logits, jnp.int32)
    descending = ~jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
    maps = jnp.asarray(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    return lax.sort((maps, descending, lax.iota(jnp.int32, logits.shape[0])), num_keys=3)[2]


def _rows(counts: Sequence[int], limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The best ``limit`` anchors of each map in rows of equal length, which one suppression then works through
    together; small maps share a row.

    Returns:
      Places in `_order`, int32 ``[r, k]``, and the map of each; -1 where a row is not full.
    """
    taken = [min(count, limit) for count in counts]
    rows: list[list[int]] = []
    for map_, count in enumerate(taken):
        row = next((row for row in rows if sum(taken[i] for i in row) + count <= max(taken)), None)
        if row is None:
            rows.append(row := [])
        row.append(map_)
    starts = np.cumsum((0, *counts))
    ranks, maps = np.zeros((len(rows), max(taken)), np.int32), np.full((len(rows), max(taken)), -1, np.int32)
    for i, row in enumerate(rows):
        places = np.concatenate([starts[map_] + np.arange(taken[map_]) for map_ in row])
        ranks[i, :len(places)], maps[i, :len(places)] = places, np.repeat(row, [taken[map_] for map_ in row])
    return ranks, maps


def rpn_loss(logits: Float[Array, " n"], deltas: Float[Array, "n 4"], anchors: Float[Array, "n 4"],
             target: Float[Array, "n 4"], sampled: Bool[Array, " n"], positive: Bool[Array, " n"],
             beta: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Losses of one image's anchors: logistic loss of objectness, and smooth L1 loss of the positives' offsets, both
    summed over the sampled anchors and divided by their number (Ren et al. 2015, equation 1).

    Args:
      target: the object of each positive anchor; otherwise unused.
      beta: see `smooth_l1`.
    """
    count = jnp.maximum(sampled.sum(), 1).astype(jnp.float32)
    positive = positive & sampled
    objectness = jax.nn.softplus(logits) - logits * positive.astype(jnp.float32)
    # Anchors without an object are their own target: encoding anything else might give infinities.
    target_deltas = encode(jnp.where(positive[:, None], target, anchors), anchors, WEIGHTS)
    offsets = smooth_l1(deltas - target_deltas, beta).sum(-1)
    return (jnp.where(sampled, objectness, 0.0).sum() / count, jnp.where(positive, offsets, 0.0).sum() / count)


def sampled_rpn_loss(logits: Float[Array, " n"], deltas: Float[Array, "n 4"], anchors: Float[Array, "n 4"],
                     truth: Float[Array, "g 4"], kind: Int[Array, " g"], size: Int[Array, " 2"], key: Array,
                     low: float, high: float, samples: int, fraction: float,
                     beta: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`rpn_loss` of one image on ``samples`` anchors, matched and sampled."""
    matched, positive, negative = match(anchors, within(anchors, size), truth, kind, low, high, low_quality=True)
    indices, sampled, positive = sample(key, positive, negative, samples, fraction)
    target = truth[matched[indices]]
    return rpn_loss(logits[indices], deltas[indices], anchors[indices], target, sampled, positive, beta)


def smooth_l1(x: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """|x| - beta / 2, or x^2 / (2 beta) where |x| < beta (Girshick 2015, equation 3, with beta 1). L1 for beta 0."""
    size = jnp.abs(x)
    return size if beta == 0 else jnp.where(size < beta, 0.5 * x * x / beta, size - 0.5 * beta)
