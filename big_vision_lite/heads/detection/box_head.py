"""The second stage: class and refined box of each proposal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from big_vision_lite.heads.detection.boxes import at_least, clip, decode, encode
from big_vision_lite.heads.detection.matching import OBJECT, match, sample
from big_vision_lite.heads.detection.nms import nms
from big_vision_lite.heads.detection.rpn import smooth_l1

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_MIN_SIDE = 1e-2
"""In pixels; smaller detections are dropped."""


class BoxPredictor(nnx.Module):
    """From features of a box to logits of background (0) and the classes (from 1), and four offsets per class."""

    def __init__(self, inputs: int, num_classes: int, rngs: nnx.Rngs):
        self.num_classes = num_classes
        self.logits = nnx.Linear(inputs, num_classes + 1, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.offsets = nnx.Linear(inputs, 4 * num_classes, kernel_init=nnx.initializers.normal(0.001), rngs=rngs)

    def __call__(self, x: Float[Array, "*n c"]) -> tuple[Float[Array, "*n k"], Float[Array, "*n c2 4"]]:
        """In float32 for features of any dtype."""
        x = x.astype(jnp.float32)
        return self.logits(x), self.offsets(x).reshape(*x.shape[:-1], self.num_classes, 4)


class BoxMLP(nnx.Module):
    """Two fully connected layers on the bins of a box (Lin et al. 2017, section 4.2)."""

    def __init__(self, bins: int, channels: int, width: int, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
        self.first = nnx.Linear(bins * channels, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.second = nnx.Linear(width, width, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n p p c"]) -> Float[Array, "n d"]:
        return nnx.relu(self.second(nnx.relu(self.first(x.reshape(x.shape[0], -1)))))


def choose_rois(boxes: Float[Array, "p 4"], valid: Bool[Array, " p"], truth: Float[Array, "g 4"],
                labels: Int[Array, " g"], kind: Int[Array, " g"], key: Array, rois_per_image: int,
                fraction: float, threshold: float) -> tuple[Float[Array, "r 4"], Bool[Array, " r"], Int[Array, " r"],
                                                            Float[Array, "r 4"]]:
    """The boxes of one image that the second stage learns from: a sample of its proposals and of the objects
    themselves, at most ``fraction`` of them positive.

    Returns:
      Boxes; which of them are in the sample (the others fill the shape); their classes, 0 background; their objects.
    """
    boxes, valid = jnp.concatenate([boxes, truth]), jnp.concatenate([valid, kind == OBJECT])
    matched, positive, negative = match(boxes, valid, truth, kind, threshold, threshold, low_quality=False)
    indices, sampled, positive = sample(key, positive, negative, rois_per_image, fraction)
    matched = matched[indices]
    return boxes[indices], sampled, jnp.where(positive, labels[matched] + 1, 0), truth[matched]


def box_loss(logits: Float[Array, "r k"], deltas: Float[Array, "r c 4"], rois: Float[Array, "r 4"],
             sampled: Bool[Array, " r"], labels: Int[Array, " r"], target: Float[Array, "r 4"],
             beta: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Losses of one image's boxes: cross-entropy of their classes, and smooth L1 loss of the positives' offsets for
    their class, both summed over the sampled boxes and divided by their number (Girshick 2015, section 2.3)."""
    count = jnp.maximum(sampled.sum(), 1).astype(jnp.float32)
    cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1)[:, 0]
    positive = sampled & (labels > 0)
    own_deltas = jnp.take_along_axis(deltas, jnp.maximum(labels - 1, 0)[:, None, None], 1)[:, 0]
    # Other boxes may be empty or matched to an empty row: their offsets would be infinite, and so the gradient NaN.
    unit = jnp.asarray([0.0, 0.0, 1.0, 1.0])
    target_deltas = encode(*(jnp.where(positive[:, None], b, unit) for b in (target, rois)), WEIGHTS)
    offsets = smooth_l1(own_deltas - target_deltas, beta).sum(-1)
    return jnp.where(sampled, cross_entropy, 0.0).sum() / count, jnp.where(positive, offsets, 0.0).sum() / count


def detect(logits: Float[Array, "p k"], deltas: Float[Array, "p c 4"], boxes: Float[Array, "p 4"],
           valid: Bool[Array, " p"], size: Int[Array, " 2"], threshold: float, nms_iou: float, pre_nms_topk: int,
           max_detections: int) -> dict[str, Array]:
    """The detections of one image, by falling score.

    Args:
      logits, deltas, boxes, valid: of the proposals.
      size: (height, width) of the image without padding.
      threshold: minimum probability of a class.
      nms_iou: IoU above which the better of two detections of a class suppresses the other.
      pre_nms_topk: best pairs of proposal and class that are considered.
      max_detections: detections to return at most.

    Returns:
      ``boxes`` float32 ``[d, 4]``, ``scores`` ``[d]``, ``labels`` int32 ``[d]`` and ``valid`` bool ``[d]``.
    """
    num_classes = deltas.shape[1]
    score = jnp.where(valid[:, None], jax.nn.softmax(logits)[:, 1:], 0.0).ravel()
    score = jnp.where(score > threshold, score, -jnp.inf)
    score, best = lax.top_k(score, min(pre_nms_topk, score.shape[0]))
    label = (best % num_classes).astype(jnp.int32)
    box = clip(decode(deltas.reshape(-1, 4)[best], boxes[best // num_classes], WEIGHTS), size)
    keep = nms(box, jnp.isfinite(score) & at_least(box, _MIN_SIDE), nms_iou, label)
    score, best = lax.top_k(jnp.where(keep, score, -jnp.inf), min(max_detections, score.shape[0]))
    valid = jnp.isfinite(score)
    return {"boxes": box[best], "scores": jnp.where(valid, score, 0.0), "labels": label[best], "valid": valid}
