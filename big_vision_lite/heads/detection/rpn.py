"""Region proposals: where objects may be (Ren et al. 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from big_vision_lite.backbones.conv import conv_general_dilated
from big_vision_lite.heads.detection.boxes import clip, decode, encode, larger_than
from big_vision_lite.heads.detection.matching import match, sample
from big_vision_lite.heads.detection.nms import suppress

WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_LEAST = 1e-3
"""Pixels; smaller proposals are dropped."""


class RPN(nnx.Module):
    """A 3x3 convolution, then for each anchor of a cell an objectness logit and four offsets. One for all maps."""

    def __init__(self, inputs: int, channels: int, anchors: int, dtype: DTypeLike, rngs: nnx.Rngs):
        def conv(inputs: int, outputs: int, size: int) -> nnx.Conv:
            pad = (size // 2, size // 2)
            return nnx.Conv(inputs, outputs, (size, size), padding=(pad, pad), dtype=dtype,
                            kernel_init=nnx.initializers.normal(0.01), conv_general_dilated=conv_general_dilated,
                            rngs=rngs)

        self.conv = conv(inputs, channels, 3)
        self.objectness, self.offsets = conv(channels, anchors, 1), conv(channels, 4 * anchors, 1)

    def __call__(self, features: Sequence[Float[Array, "b _ _ c"]]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """For each map, logits ``[b, n]`` and offsets ``[b, n, 4]``, float32, in the order of `grid_anchors`."""
        logits, deltas = [], []
        for x in features:
            x = nnx.relu(self.conv(x))
            logits.append(self.objectness(x).astype(jnp.float32).reshape(x.shape[0], -1))
            deltas.append(self.offsets(x).astype(jnp.float32).reshape(x.shape[0], -1, 4))
        return tuple(logits), tuple(deltas)


def within(anchors: Float[Array, "n 4"], size: Int[Array, " 2"]) -> Bool[Array, " n"]:
    """Whether an anchor's centre is in the true image of ``size`` (height, width): what is padding is nobody's."""
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    return ((center >= 0) & (center < size[::-1].astype(jnp.float32))).all(-1)


def propose(logits: Sequence[Float[Array, " _"]], deltas: Sequence[Float[Array, "_ 4"]],
            anchors: Sequence[Float[Array, "_ 4"]], size: Int[Array, " 2"], candidates: int, proposals: int,
            threshold: float) -> tuple[Float[Array, "p 4"], Bool[Array, " p"]]:
    """The proposals of one image, by falling objectness; without gradient.

    Args:
      logits, deltas, anchors: of each map.
      size: (height, width) of the true image; anchors whose centre is outside do not propose.
      candidates: best anchors of each map that are looked at.
      proposals: most to return, over all maps.
      threshold: of IoU, for non-maximum suppression within each map.

    Returns:
      Boxes, and which of them are proposals: they come first, the others only fill the shape.
    """
    boxes, scores = [], []
    for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
        logit = jnp.where(within(anchor, size), lax.stop_gradient(logit), -jnp.inf)
        score, best = lax.top_k(logit, min(candidates, logit.shape[0]))
        box = clip(decode(lax.stop_gradient(delta)[best], anchor[best], WEIGHTS), size)
        keep = suppress(box, jnp.isfinite(score) & larger_than(box, _LEAST), threshold)
        boxes.append(box)
        scores.append(jnp.where(keep, score, -jnp.inf))
    score, best = lax.top_k(jnp.concatenate(scores), min(proposals, sum(s.shape[0] for s in scores)))
    return jnp.concatenate(boxes)[best], jnp.isfinite(score)


def rpn_loss(logits: Float[Array, " n"], deltas: Float[Array, "n 4"], anchors: Float[Array, "n 4"],
             target: Float[Array, "n 4"], chosen: Bool[Array, " n"], positive: Bool[Array, " n"],
             beta: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Losses of one image's sampled anchors: logistic loss of being an object, and smooth L1 loss of the positives'
    offsets, both summed and divided by the number of anchors that were sampled (Ren et al. 2015, equation 1).

    Args:
      target: the object of each positive; of others it does not count.
      beta: where smooth L1 turns from square to line; 0: L1.
    """
    count = jnp.maximum(chosen.sum(), 1).astype(jnp.float32)
    positive = positive & chosen
    objectness = jax.nn.softplus(logits) - logits * positive.astype(jnp.float32)
    # Where there is no object, an anchor is its own: what encode returns of others may be infinite.
    wanted = encode(jnp.where(positive[:, None], target, anchors), anchors, WEIGHTS)
    offsets = smooth_l1(deltas - wanted, beta).sum(-1)
    return (jnp.where(chosen, objectness, 0.0).sum() / count, jnp.where(positive, offsets, 0.0).sum() / count)


def sampled_rpn_loss(logits: Float[Array, " n"], deltas: Float[Array, "n 4"], anchors: Float[Array, "n 4"],
                     truth: Float[Array, "g 4"], kind: Int[Array, " g"], size: Int[Array, " 2"], key: Array,
                     low: float, high: float, samples: int, fraction: float,
                     beta: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`rpn_loss` of one image on ``samples`` anchors, chosen as in `match` and `sample`."""
    matched, positive, negative = match(anchors, within(anchors, size), truth, kind, low, high, low_quality=True)
    indices, chosen, positive = sample(key, positive, negative, samples, fraction)
    return rpn_loss(logits[indices], deltas[indices], anchors[indices], truth[matched[indices]], chosen, positive, beta)


def smooth_l1(x: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """|x| - beta / 2, or x^2 / (2 beta) where |x| < beta (Girshick 2015, equation 3, where beta is 1)."""
    size = jnp.abs(x)
    return size if beta == 0 else jnp.where(size < beta, 0.5 * x * x / beta, size - 0.5 * beta)
