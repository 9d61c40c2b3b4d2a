"""Image classification with many labels an image, or with one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.backbones.backbone import Features
from big_vision_lite.data.source import Described, Example, Records
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.classification import MultiLabelScores, SingleLabelScores
from big_vision_lite.heads.head import Batch, Head, Scores
from big_vision_lite.heads.losses import multi_hot, sigmoid_loss, softmax_loss
from big_vision_lite.heads.pictures import draw_labels


@dataclasses.dataclass(frozen=True)
class Classification(Head):
    """One fully connected layer on the global average of the last stage."""

    loss_kind: Literal["sigmoid", "softmax"] = "sigmoid"
    """``sigmoid``: a logistic loss a label, summed (the paper's, for images with any number of labels).
    ``softmax``: cross-entropy, for images with one."""
    label_smoothing: float = 0.0
    """Share of the softmax target that goes to the uniform distribution."""
    max_labels: int = 16
    """Slots for label ids an image. More labels than that is an error, never a silent loss."""
    prior: float | None = None
    """Probability that a label is given before training, which sets the bias of the sigmoid layer. None: a half,
    or for the sigmoid loss one positive label an image."""

    mixup: float = 0.0
    """Training images are mixed with another of their batch, labels alike, in shares drawn from Beta(mixup, mixup)
    (Zhang et al. 2018); 0: not at all."""
    ten_crop: int | None = None
    """Larger images are scored by the mean probability of ten crops of this side: four corners and the centre, and
    these mirrored (Krizhevsky et al. 2012). Their transform keeps what is around the crops, as Squash(340) does."""

    def __post_init__(self) -> None:
        if self.mixup < 0:
            raise UserError(f"Classification: mixup={self.mixup}; expected at least 0")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"Classification: label_smoothing={self.label_smoothing}; expected 0 to below 1")
        if self.label_smoothing and self.loss_kind == "sigmoid":
            raise UserError("Classification: label_smoothing is for loss_kind='softmax'; set it to 0")
        if self.prior is not None and not 0.0 < self.prior < 1.0:
            raise UserError(f"Classification: prior={self.prior}; expected a probability above 0 and below 1")

    @property
    def mixes(self) -> bool:
        return self.mixup > 0

    def build(self, backbone: Features, data: Described, rngs: nnx.Rngs) -> Classifier:
        classes = len(data.classes)
        bias = 0.0
        if self.loss_kind == "sigmoid":
            prior = self.prior or min(0.5, 1.0 / classes)
            bias = math.log(prior / (1.0 - prior))
        return Classifier(backbone, classes, bias, rngs)

    def targets(self, example: Example) -> dict[str, np.ndarray]:
        labels = np.asarray(example.get("labels", ()), np.int32)
        if len(labels) > self.max_labels:
            raise UserError(f"image {example['id']!r} has {len(labels)} labels; the head has room for max_labels="
                            f"{self.max_labels}; raise it")
        padded = np.full(self.max_labels, -1, np.int32)
        padded[:len(labels)] = labels
        if not self.mixup:
            return {"labels": padded}
        share = np.random.default_rng(example["key"]).beta(self.mixup, self.mixup) if "key" in example else 1.0
        return {"labels": padded, "share": np.float32(max(share, 1.0 - share))}

    def loss(self, model: Classifier, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        images, hot = batch["image"], multi_hot(batch["labels"], model.classes)
        if self.mixup:
            images, hot = mixed(images, hot, jnp.where(batch["mask"][::-1], batch["share"], 1.0))
        logits = model(images, train=True)
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        right = jnp.take_along_axis(hot, best, axis=-1)[:, 0]
        return self._loss(logits, hot), {"precision@1": right}

    def _loss(self, logits: Float[Array, "b c"], hot: Float[Array, "b c"]) -> Float[Array, " b"]:
        if self.loss_kind == "sigmoid":
            return sigmoid_loss(logits, hot)
        return softmax_loss(logits, hot, self.label_smoothing)

    def outputs(self, model: Classifier, batch: Batch) -> dict[str, Array]:
        images, side = batch["image"], self.ten_crop
        if side is None or images.shape[1:3] == (side, side):
            logits = model(images, train=False)
        else:
            logits = self._mean_logits(jax.lax.map(lambda crop: model(crop, train=False), ten_crops(images, side)))
        return {"logits": logits, "loss": self._loss(logits, multi_hot(batch["labels"], logits.shape[-1]))}

    def _mean_logits(self, logits: Float[Array, "n b c"]) -> Float[Array, "b c"]:
        """The logits of the mean probabilities over ``n`` views."""
        if self.loss_kind == "softmax":
            return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(len(logits))
        yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=0) for sign in (1.0, -1.0))
        return yes - no

    def scores(self, records: Records) -> Scores:
        return ClassificationScores(records)

    def main_metric(self, data: Described) -> str:
        return "mAP" if data.multi_label else "top1"

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        logits = logits.astype(np.float64)
        if self.loss_kind == "sigmoid":
            return 1.0 / (1.0 + np.exp(-logits))
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        return probabilities / probabilities.sum(-1, keepdims=True)

    def answers(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """"labels": the five most probable, each with "label" and "probability", the most probable first."""
        return [{"labels": [{"label": classes[c], "probability": round(float(row[c]), 6)}
                            for c in np.argsort(-row, kind="stable")[:5]]}
                for row in self._probabilities(outputs["logits"])]

    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        draw_labels(path, batch["image"], batch["labels"], self._probabilities(outputs["logits"]), classes)


def mixed(images: UInt8[Array, "b h w 3"], targets: Float[Array, "b c"],
          share: Float[Array, " b"]) -> tuple[UInt8[Array, "b h w 3"], Float[Array, "b c"]]:
    """``share`` of each image and its targets, the rest from the image at the same place from the batch's end."""
    def mix(values: Array) -> Array:
        own = share.reshape(-1, *[1] * (values.ndim - 1))
        return own * values + (1.0 - own) * values[::-1]

    return jnp.round(mix(images.astype(jnp.float32))).astype(jnp.uint8), mix(targets)


def ten_crops(images: UInt8[Array, "b h w 3"], side: int) -> UInt8[Array, "10 b s s 3"]:
    """Four corners, the centre, and these mirrored. Raises: UserError when an image is smaller than a crop."""
    height, width = images.shape[1:3]
    if min(height, width) < side:
        raise UserError(f"ten_crop={side}, and images have {height} x {width} pixels; expected at least {side}")
    down, across = height - side, width - side
    corners = [(0, 0), (0, across), (down, 0), (down, across), (down // 2, across // 2)]
    crops = jnp.stack([images[:, top:top + side, left:left + side] for top, left in corners])
    return jnp.concatenate([crops, crops[:, :, :, ::-1]])


class Classifier(nnx.Module):
    """uint8 images to float32 logits."""

    def __init__(self, backbone: Features, classes: int, bias: float, rngs: nnx.Rngs):
        self.backbone, self.classes = backbone, classes
        # Zero weights: the first loss is that of the bias alone, and a replaced head starts where it should.
        self.head = nnx.Linear(backbone.channels[-1], classes, kernel_init=nnx.initializers.zeros,
                               bias_init=nnx.initializers.constant(bias), rngs=rngs)

    def __call__(self, images: Array, train: bool) -> Float[Array, "b c"]:
        features = self.backbone(images, train)[-1].astype(jnp.float32)
        return self.head(features.mean((1, 2)))


class ClassificationScores(Scores):
    """mAP and its kin for many labels an image, top-1 and top-5 for one; and the mean loss."""

    def __init__(self, records: Records):
        self.multi_label = records.multi_label
        kind = MultiLabelScores if records.multi_label else SingleLabelScores
        self.scores = kind(len(records.classes), len(records))
        self.loss, self.images = 0.0, 0

    def add(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
        self.scores.add(outputs["logits"], batch["labels"], batch["mask"])
        self.loss += float(outputs["loss"][batch["mask"]].sum(dtype=np.float64))
        self.images += int(batch["mask"].sum())

    def result(self) -> dict[str, float]:
        """As the scores' own ``result``, with "loss", "images" and for mAP "mAP_chance" (scores permuted)."""
        chance = {"mAP_chance": self.scores.chance()} if self.multi_label else {}
        return {**self.scores.result(), **chance, "loss": self.loss / max(self.images, 1), "images": self.images}
