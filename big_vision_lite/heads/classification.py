"""Image classification with any number of labels per image, or exactly one."""

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

from big_vision_lite.backbones.backbone import BackboneModule, Keys
from big_vision_lite.data.curation.curated import Curated
from big_vision_lite.data.curation.hierarchy import Hierarchy
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.errors import UnusableImageError, UserError
from big_vision_lite.evaluation.answer_sets import Confidence
from big_vision_lite.evaluation.calibration import Calibration, best_is_right
from big_vision_lite.evaluation.classification import MultiLabelMetrics, SingleLabelMetrics, SuperclassMetrics
from big_vision_lite.evaluation.details import Details, SingleLabelAnswers
from big_vision_lite.evaluation.scorable import check_labels
from big_vision_lite.heads.drawing import draw_labels
from big_vision_lite.heads.head import Batch, Head, MainMetric, Metrics, Prediction
from big_vision_lite.heads.losses import multi_hot, sigmoid_loss, soft_targets, softmax_loss
from big_vision_lite.heads.photo import AnnotatedPhoto
from big_vision_lite.system.fields import at_least

SLOTS = 16
MOST_SLOTS = 256
"""A batch of 1,024 images then has 1 MB of labels."""


@dataclasses.dataclass(frozen=True)
class Classification(Head):
    """One fully connected layer on the global average of the last stage."""

    loss_kind: Literal["sigmoid", "softmax"] = "sigmoid"
    """``sigmoid``: one logistic loss per class, summed (the paper's, for any number of labels per image).
    ``softmax``: cross-entropy, for one label per image."""
    label_smoothing: float = 0.0
    """Share of the softmax target that goes to the uniform distribution."""
    max_labels: int | None = 16
    """Slots for labels per image. None: as many as the image of the data with most labels has, at most `MOST_SLOTS`. An
    image with more is treated as one that cannot be read, see `Input.on_bad_image`: no label is dropped silently."""
    prior: float | None = None
    """Probability of each label before training, which sets the bias of the sigmoid layer. None: one label per image,
    at most a half. The softmax layer has no prior."""

    mixup: float = 0.0
    """Mix each training image, and its labels, with another of its batch, in proportions drawn from Beta(mixup, mixup)
    (Zhang et al. 2018). 0: off."""
    ten_crop: int | None = None
    """Score larger images by the mean probability of ten crops of this side: the corners and the centre, and their
    mirror images (Krizhevsky et al. 2012). The transform must leave room around the crops, as Resize(340) does."""

    soft_labels: bool = False
    """Learn the probabilities that another network gave to an image's most probable classes, not only the labels that
    follow from them: see `data.sources.pseudo_labels`. Images without such probabilities have their labels."""

    hierarchy: str | None = None
    """File with the columns child and parent, and exactly one parent per class: evaluations of a softmax also have the
    accuracy among these superclasses, "superclass_top1", by the summed probabilities of their classes."""

    def __post_init__(self) -> None:
        at_least(self, 0, "mixup")
        at_least(self, 1, "max_labels", "ten_crop")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"Classification: label_smoothing={self.label_smoothing}; expected 0 to below 1")
        if self.label_smoothing and self.loss_kind == "sigmoid":
            raise UserError("Classification: label_smoothing is for loss_kind='softmax'; set it to 0")
        if self.hierarchy is not None and self.loss_kind == "sigmoid":
            raise UserError(f"Classification: hierarchy={self.hierarchy!r} with loss_kind='sigmoid', whose "
                            "probabilities do not add up; set loss_kind='softmax', or hierarchy to none")
        if self.prior is not None and not 0.0 < self.prior < 1.0:
            raise UserError(f"Classification: prior={self.prior}; expected a probability above 0 and below 1")

    def build(self, backbone: BackboneModule, data: DatasetInfo, rngs: nnx.Rngs) -> Classifier:
        num_classes = len(data.classes)
        if num_classes == 1 and not data.multi_label:
            raise UserError(f"the data has one class, {data.classes[0]!r}, which every image is of, so that there is "
                            "nothing to learn; expected several, such as one folder per class below the root")
        bias = 0.0
        if self.loss_kind == "sigmoid":
            prior = self.prior or min(0.5, 1.0 / num_classes)
            bias = math.log(prior / (1.0 - prior))
        return Classifier(backbone, num_classes, bias, rngs)

    def for_data(self, dataset: Dataset) -> Classification:
        if self.max_labels is not None:
            return self
        most = max(len(labels_per_image(dataset)) - 1, SLOTS if self.soft_labels else 1)
        return dataclasses.replace(self, max_labels=min(most, MOST_SLOTS))

    def sizes(self, dataset: Dataset) -> str | None:
        if self.max_labels is not None:
            return None
        images, slots = labels_per_image(dataset), self.for_data(dataset).max_labels
        share = np.cumsum(images) / images.sum()
        more = int(images[slots + 1:].sum())
        return (f"{slots} slots for labels; 99.9% of the images have at most {int((share < 0.999).sum())} labels, the "
                f"most is {len(images) - 1}" + (f"; {more:,} images have more than there are slots" if more else ""))

    def targets(self, example: Example) -> dict[str, np.ndarray]:
        labels, slots = np.asarray(example.get("labels", ()), np.int32), self.max_labels or SLOTS
        if len(labels) > slots:
            raise UnusableImageError(example["id"], f"it has {len(labels)} labels; the head has room for max_labels="
                                                    f"{slots}; raise it")
        padded = np.full(slots, -1, np.int32)
        padded[:len(labels)] = labels
        targets = {"labels": padded, "key": np.asarray(example.get("key", (0, 0)), np.uint32)}
        if self.soft_labels:
            targets |= self._soft_targets(example, padded)
        if self.mixup:
            share = np.random.default_rng(example["key"]).beta(self.mixup, self.mixup) if "key" in example else 1.0
            targets["share"] = np.float32(max(share, 1.0 - share))
        return targets

    def _soft_targets(self, example: Example, labels: np.ndarray) -> dict[str, np.ndarray]:
        """"candidates" int32 and their "probabilities" float32, both ``[slots]``, padded with -1 and 0."""
        if "candidates" not in example:
            return {"candidates": labels, "probabilities": (labels >= 0).astype(np.float32)}
        candidates, probabilities = np.full_like(labels, -1), np.zeros(len(labels), np.float32)
        count = min(len(example["candidates"]), len(labels))  # the most probable come first
        candidates[:count], probabilities[:count] = example["candidates"][:count], example["probabilities"][:count]
        if self.loss_kind == "softmax":
            probabilities /= max(probabilities.sum(), 1e-6)  # of what the candidates leave to other classes
        return {"candidates": candidates, "probabilities": probabilities}

    @property
    def fixed_targets(self) -> bool:
        return not self.mixup

    def loss(self, model: Classifier, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        images, hot = batch["image"], multi_hot(batch["labels"], model.num_classes)
        if self.soft_labels:
            hot = soft_targets(batch["candidates"], batch["probabilities"], model.num_classes)
        if self.mixup:
            images, hot = mixed(images, hot, jnp.where(batch["mask"][::-1], batch["share"], 1.0))
        logits = model(images, train=True, keys=batch.get("key"))
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        correct = jnp.take_along_axis(hot, best, axis=-1)[:, 0]
        return self._loss(logits, hot), {"precision@1": correct}

    def _loss(self, logits: Float[Array, "b c"], hot: Float[Array, "b c"]) -> Float[Array, " b"]:
        if self.loss_kind == "sigmoid":
            return sigmoid_loss(logits, hot)
        return softmax_loss(logits, hot, self.label_smoothing)

    def predict(self, model: Classifier, batch: Batch) -> dict[str, Array]:
        images, side = batch["image"], self.ten_crop
        if side is None or images.shape[1:3] == (side, side):
            logits = model(images, train=False)
        else:
            logits = self._mean_logits(jax.lax.map(lambda crop: model(crop, train=False), ten_crops(images, side)))
        return {"logits": logits, "loss": self._loss(logits, multi_hot(batch["labels"], logits.shape[-1]))}

    def serve(self, model: Classifier, batch: Batch) -> dict[str, Array]:
        """"logits" and "probabilities" ``[b, c]``."""
        logits = self.predict(model, batch)["logits"]
        normalize = jax.nn.sigmoid if self.loss_kind == "sigmoid" else jax.nn.softmax
        return {"logits": logits, "probabilities": normalize(logits)}

    def _mean_logits(self, logits: Float[Array, "n b c"]) -> Float[Array, "b c"]:
        """The logits of the mean probabilities over ``n`` crops."""
        if self.loss_kind == "softmax":
            return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(len(logits))
        yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=0) for sign in (1.0, -1.0))
        return yes - no

    def metrics(self, dataset: Dataset) -> Metrics:
        return ClassificationMetrics(dataset, self.confidence, self._superclasses(dataset))

    def check_eval(self, dataset: Dataset) -> None:
        check_labels(dataset)
        self._superclasses(dataset)

    def _superclasses(self, dataset: Dataset) -> np.ndarray | None:
        """The index of each class's superclass, int32 ``[classes]``. Raises: UserError when they are not defined."""
        if self.hierarchy is None:
            return None
        if dataset.multi_label:
            raise UserError(f"Classification: hierarchy={self.hierarchy!r}, and images may have any number of labels; "
                            "superclasses are scored with exactly one: set hierarchy to none")
        return Hierarchy(self.hierarchy).parents_of(dataset.classes)[1]

    def main_metric(self, data: DatasetInfo) -> MainMetric:
        return MainMetric("mAP" if data.multi_label else "top1")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """float64 ``[b, classes]``, of the logits on the host."""
        from scipy.special import expit, softmax

        logits = logits.astype(np.float64)
        return expit(logits) if self.loss_kind == "sigmoid" else softmax(logits, axis=-1)

    def confidence(self, logits: Float[np.ndarray, "b c"]) -> Float[np.ndarray, " b"]:
        """The probability of the most probable class; 1 where its logit is infinite."""
        from scipy.special import expit

        best = logits.max(axis=-1).astype(np.float64)
        if self.loss_kind == "sigmoid":
            return expit(best)
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(1.0 / np.exp(logits - best[:, None]).sum(axis=-1), nan=1.0)

    def to_json(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """"labels": the five most probable, each with "label" and "probability", in falling order."""
        return [{"labels": [{"label": classes[c], "probability": round(float(row[c]), 6)}
                            for c in np.argsort(-row, kind="stable")[:5]]}
                for row in self.probabilities(outputs["logits"])]

    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        draw_labels(path, batch["image"], batch["labels"], self.probabilities(outputs["logits"]), classes)

    def annotate(self, photo: UInt8[np.ndarray, "h w 3"], prediction: Prediction, classes: tuple[str, ...],
                 score: float | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """The labels stand below the photo."""
        labels = [(f"{label['label']} {label['probability']:.0%}", None) for label in prediction.values["labels"]]
        return AnnotatedPhoto(photo).finish(labels or [("no label", None)])


def labels_per_image(dataset: Dataset) -> np.ndarray:
    """int64: number k is how many images have k labels, up to the most that one has; by the label index."""
    data = Curated.of(dataset)
    chunks = [np.bincount(data.labels_at(indices).counts()) for indices in data.order.chunks()]
    images = np.zeros(max(map(len, chunks)), np.int64)
    for chunk in chunks:
        images[: len(chunk)] += chunk
    return images


def mixed(images: UInt8[Array, "b h w 3"], targets: Float[Array, "b c"],
          share: Float[Array, " b"]) -> tuple[UInt8[Array, "b h w 3"], Float[Array, "b c"]]:
    """``share`` of each image and its targets, and the rest of the image in the same place of the reversed batch."""
    def mix(values: Array) -> Array:
        weight = share.reshape(-1, *[1] * (values.ndim - 1))
        return weight * values + (1.0 - weight) * values[::-1]

    return jnp.round(mix(images.astype(jnp.float32))).astype(jnp.uint8), mix(targets)


def ten_crops(images: UInt8[Array, "b h w 3"], side: int) -> UInt8[Array, "10 b s s 3"]:
    """The corners, the centre, and their mirror images. Raises: UserError when an image is smaller than a crop."""
    height, width = images.shape[1:3]
    if min(height, width) < side:
        raise UserError(f"ten_crop={side}, and images have {height} x {width} pixels; expected at least {side}")
    bottom, right = height - side, width - side
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = jnp.stack([images[:, top:top + side, left:left + side] for top, left in places])
    return jnp.concatenate([crops, crops[:, :, :, ::-1]])


class Classifier(nnx.Module):
    """uint8 images to float32 logits."""

    def __init__(self, backbone: BackboneModule, num_classes: int, bias: float, rngs: nnx.Rngs):
        self.backbone, self.num_classes = backbone, num_classes
        # Zero weights: the first loss depends on the bias alone, also on top of a pretrained backbone.
        self.head = nnx.Linear(backbone.channels[-1], num_classes, kernel_init=nnx.initializers.zeros,
                               bias_init=nnx.initializers.constant(bias), rngs=rngs)

    def __call__(self, images: Array, train: bool, keys: Keys = None) -> Float[Array, "b c"]:
        features = self.backbone(images, train, keys)[-1].astype(jnp.float32)
        return self.head(features.mean((1, 2)))


class ClassificationMetrics(Metrics):
    """`MultiLabelMetrics` or `SingleLabelMetrics`, as the dataset has it, the mean loss and the calibration.

    Args:
      confidence: from logits to the probability of the best class.
      superclass_of: for `SuperclassMetrics` as well.
    """

    def __init__(self, dataset: Dataset, confidence: Confidence, superclass_of: np.ndarray | None = None):
        self.multi_label = dataset.multi_label
        accumulator = MultiLabelMetrics if dataset.multi_label else SingleLabelMetrics
        self.scores = accumulator(len(dataset.classes), len(dataset))
        self.classes, self.answers = dataset.classes, None if dataset.multi_label else SingleLabelAnswers()
        self.superclasses = None if superclass_of is None else SuperclassMetrics(superclass_of, len(dataset))
        self.confidence, self.calibration = confidence, Calibration()
        self.loss, self.images = 0.0, 0

    def add(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
        self.scores.add(outputs["logits"], batch["labels"], batch["mask"])
        if self.answers:
            self.answers.add(outputs["logits"], batch["labels"], batch["mask"])
        if self.superclasses:
            self.superclasses.add(outputs["logits"], batch["labels"], batch["mask"])
        logits, labels = outputs["logits"][batch["mask"]], batch["labels"][batch["mask"]]
        right = np.zeros(logits.shape, np.bool_)
        rows, slots = np.nonzero(labels >= 0)
        right[rows, labels[rows, slots]] = True
        self.calibration.add(self.confidence(logits), best_is_right(logits, right))
        self.loss += float(outputs["loss"][batch["mask"]].sum(dtype=np.float64))
        self.images += int(batch["mask"].sum())

    def result(self) -> dict[str, float | None]:
        """The accumulators' metrics, "loss", "images" and, with many labels, "mAP_chance" (of permuted scores)."""
        more = {"mAP_chance": self.scores.chance()} if self.multi_label else {}
        if self.superclasses:
            more = self.superclasses.result()
        return {**self.scores.result(), **more, "loss": self.loss / max(self.images, 1), "images": self.images}

    def details(self) -> Details:
        details = (self.answers or self.scores).details(self.classes)
        calibration = self.calibration.details()
        return {**details, "calibration": calibration} if calibration else details
