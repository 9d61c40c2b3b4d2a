"""Image classification with many labels an image, or with one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

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

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"Classification: label_smoothing={self.label_smoothing}; expected 0 to below 1")
        if self.label_smoothing and self.loss_kind == "sigmoid":
            raise UserError("Classification: label_smoothing is for loss_kind='softmax'; set it to 0")
        if self.prior is not None and not 0.0 < self.prior < 1.0:
            raise UserError(f"Classification: prior={self.prior}; expected a probability above 0 and below 1")

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
        return {"labels": padded}

    def loss(self, model: Classifier, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        logits = model(batch["image"], train=True)
        hot = multi_hot(batch["labels"], logits.shape[-1])
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        right = jnp.take_along_axis(hot, best, axis=-1)[:, 0]
        return self._loss(logits, hot), {"precision@1": right}

    def _loss(self, logits: Float[Array, "b c"], hot: Float[Array, "b c"]) -> Float[Array, " b"]:
        if self.loss_kind == "sigmoid":
            return sigmoid_loss(logits, hot)
        return softmax_loss(logits, hot, self.label_smoothing)

    def outputs(self, model: Classifier, batch: Batch) -> dict[str, Array]:
        logits = model(batch["image"], train=False)
        return {"logits": logits, "loss": self._loss(logits, multi_hot(batch["labels"], logits.shape[-1]))}

    def scores(self, records: Records) -> Scores:
        return ClassificationScores(records)

    def main_metric(self, data: Described) -> str:
        return "mAP" if data.multi_label else "top1"

    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        logits = outputs["logits"].astype(np.float64)
        if self.loss_kind == "sigmoid":
            probabilities = 1.0 / (1.0 + np.exp(-logits))
        else:
            probabilities = np.exp(logits - logits.max(-1, keepdims=True))
            probabilities /= probabilities.sum(-1, keepdims=True)
        draw_labels(path, batch["image"], batch["labels"], probabilities, classes)


class Classifier(nnx.Module):
    """uint8 images to float32 logits."""

    def __init__(self, backbone: Features, classes: int, bias: float, rngs: nnx.Rngs):
        self.backbone = backbone
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
