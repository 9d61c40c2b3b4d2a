"""The second stage: class and exact box of each proposal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from big_vision_lite.heads.detection.boxes import clip, decode, encode, larger_than
from big_vision_lite.heads.detection.matching import OBJECT, match, sample
from big_vision_lite.heads.detection.nms import suppress
from big_vision_lite.heads.detection.rpn import smooth_l1

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_LEAST = 1e-2
"""Pixels; smaller detections are dropped."""


class Predictor(nnx.Module):
    """Features of a box to logits of background (0) and the classes (from 1), and four offsets for each class."""

    def __init__(self, inputs: int, classes: int, rngs: nnx.Rngs):
        self.classes = classes
        self.logits = nnx.Linear(inputs, classes + 1, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.offsets = nnx.Linear(inputs, 4 * classes, kernel_init=nnx.initializers.normal(0.001), rngs=rngs)

    def __call__(self, x: Float[Array, "*n c"]) -> tuple[Float[Array, "*n k"], Float[Array, "*n c2 4"]]:
        """In float32, whatever computed the features."""
        x = x.astype(jnp.float32)
        return self.logits(x), self.offsets(x).reshape(*x.shape[:-1], self.classes, 4)


class TwoLayers(nnx.Module):
    """Two fully connected layers on all bins of a box (Lin et al. 2017, section 4.2)."""

    def __init__(self, bins: int, channels: int, width: int, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
        self.first = nnx.Linear(bins * channels, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.second = nnx.Linear(width, width, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n p p c"]) -> Float[Array, "n d"]:
        return nnx.relu(self.second(nnx.relu(self.first(x.reshape(x.shape[0], -1)))))


def choose_rois(boxes: Float[Array, "p 4"], valid: Bool[Array, " p"], truth: Float[Array, "g 4"],
                labels: Int[Array, " g"], kind: Int[Array, " g"], key: Array, rois: int, fraction: float,
                threshold: float) -> tuple[Float[Array, "r 4"], Bool[Array, " r"], Int[Array, " r"],
                                           Float[Array, "r 4"]]:
    """The boxes that the second stage learns from in one image: a sample of its proposals and of the objects
    themselves, at most ``fraction`` of them positive.

    Returns:
      Boxes; which of them were chosen (the others fill the shape); their classes, 0 background; their objects.
    """
    boxes, valid = jnp.concatenate([boxes, truth]), jnp.concatenate([valid, kind == OBJECT])
    matched, positive, negative = match(boxes, valid, truth, kind, threshold, threshold, low_quality=False)
    indices, chosen, positive = sample(key, positive, negative, rois, fraction)
    matched = matched[indices]
    return boxes[indices], chosen, jnp.where(positive, labels[matched] + 1, 0), truth[matched]


def box_loss(logits: Float[Array, "r k"], deltas: Float[Array, "r c 4"], rois: Float[Array, "r 4"],
             chosen: Bool[Array, " r"], labels: Int[Array, " r"], target: Float[Array, "r 4"],
             beta: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Losses of one image's sampled boxes: cross-entropy of their classes, and smooth L1 loss of the positives'
    offsets for their class; both summed and divided by the number of boxes sampled (Girshick 2015, section 2.3)."""
    count = jnp.maximum(chosen.sum(), 1).astype(jnp.float32)
    crossed = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1)[:, 0]
    positive = chosen & (labels > 0)
    own = jnp.take_along_axis(deltas, jnp.maximum(labels - 1, 0)[:, None, None], 1)[:, 0]
    # Others may be empty, or matched to an empty row: their offsets would be infinite, and no mask undoes that.
    unit = jnp.asarray([0.0, 0.0, 1.0, 1.0])
    wanted = encode(*(jnp.where(positive[:, None], b, unit) for b in (target, rois)), WEIGHTS)
    offsets = smooth_l1(own - wanted, beta).sum(-1)
    return jnp.where(chosen, crossed, 0.0).sum() / count, jnp.where(positive, offsets, 0.0).sum() / count


def detect(logits: Float[Array, "p k"], deltas: Float[Array, "p c 4"], boxes: Float[Array, "p 4"],
           valid: Bool[Array, " p"], size: Int[Array, " 2"], threshold: float, nms: float, candidates: int,
           detections: int) -> dict[str, Array]:
    """The detections of one image, by falling score.

    Args:
      logits, deltas, boxes, valid: of the proposals.
      size: (height, width) of the true image.
      threshold: least probability of a class.
      nms: IoU from above which the better of two detections of a class suppresses the other.
      candidates: best pairs of proposal and class that are looked at.
      detections: most to return.

    Returns:
      ``boxes`` float32 ``[d, 4]``, ``scores`` ``[d]``, ``labels`` int32 ``[d]`` and ``valid`` bool ``[d]``.
    """
    classes = deltas.shape[1]
    score = jnp.where(valid[:, None], jax.nn.softmax(logits)[:, 1:], 0.0).ravel()
    score = jnp.where(score > threshold, score, -jnp.inf)
    score, best = lax.top_k(score, min(candidates, score.shape[0]))
    label = (best % classes).astype(jnp.int32)
    box = clip(decode(deltas.reshape(-1, 4)[best], boxes[best // classes], WEIGHTS), size)
    keep = suppress(box, jnp.isfinite(score) & larger_than(box, _LEAST), nms, label)
    score, best = lax.top_k(jnp.where(keep, score, -jnp.inf), min(detections, score.shape[0]))
    found = jnp.isfinite(score)
    return {"boxes": box[best], "scores": jnp.where(found, score, 0.0), "labels": label[best], "valid": found}
