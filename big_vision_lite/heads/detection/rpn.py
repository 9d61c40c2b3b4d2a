"""Region proposals: where objects may be (Ren et al. 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
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

    def __call__(self, features: Sequence[Float[Array, "b _ _ c"]]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Per map, float32 logits ``[b, n]`` and offsets ``[b, n, 4]``, in the order of `grid_anchors`."""
        logits, deltas = [], []
        for x in features:
            x = nnx.relu(self.conv(x))
            logits.append(self.objectness(x).astype(jnp.float32).reshape(x.shape[0], -1))
            deltas.append(self.offsets(x).astype(jnp.float32).reshape(x.shape[0], -1, 4))
        return tuple(logits), tuple(deltas)


def within(anchors: Float[Array, "n 4"], size: Int[Array, " 2"]) -> Bool[Array, " n"]:
    """Whether an anchor's centre lies in the image of ``size`` (height, width); anchors in padding are ignored."""
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    return ((center >= 0) & (center < size[::-1].astype(jnp.float32))).all(-1)


def propose(logits: Sequence[Float[Array, " _"]], deltas: Sequence[Float[Array, "_ 4"]],
            anchors: Sequence[Float[Array, "_ 4"]], size: Int[Array, " 2"], pre_nms_topk: int, post_nms_topk: int,
            threshold: float) -> tuple[Float[Array, "p 4"], Bool[Array, " p"]]:
    """The proposals of one image, by falling objectness, without gradient.

    Args:
      logits, deltas, anchors: of each map.
      size: (height, width) of the image without padding.
      pre_nms_topk: best anchors per map that are considered.
      post_nms_topk: proposals to return at most, over all maps.
      threshold: IoU for non-maximum suppression within each map.

    Returns:
      Boxes, and which of them are proposals; those come first, the others only fill the shape.
    """
    boxes, scores = [], []
    for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
        logit = jnp.where(within(anchor, size), lax.stop_gradient(logit), -jnp.inf)
        score, best = lax.top_k(logit, min(pre_nms_topk, logit.shape[0]))
        box = clip(decode(lax.stop_gradient(delta)[best], anchor[best], WEIGHTS), size)
        keep = nms(box, jnp.isfinite(score) & at_least(box, _MIN_SIDE), threshold)
        boxes.append(box)
        scores.append(jnp.where(keep, score, -jnp.inf))
    score, best = lax.top_k(jnp.concatenate(scores), min(post_nms_topk, sum(s.shape[0] for s in scores)))
    return jnp.concatenate(boxes)[best], jnp.isfinite(score)


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
