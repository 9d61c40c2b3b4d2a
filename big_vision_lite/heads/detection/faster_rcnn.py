"""Faster R-CNN (Ren et al. 2015) in fixed shapes, compiled end to end."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.backbones.backbone import BackboneModule
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.detection import check_objects
from big_vision_lite.heads.detection.anchors import grid_anchors
from big_vision_lite.heads.detection.box_head import box_loss, choose_rois, detect
from big_vision_lite.heads.detection.drawing import SHOWN, annotate_boxes, draw_boxes
from big_vision_lite.heads.detection.matching import IGNORED, OBJECT, PADDING
from big_vision_lite.heads.detection.results import FasterRCNNMetrics, to_original
from big_vision_lite.heads.detection.rpn import propose, sampled_rpn_loss
from big_vision_lite.heads.detection.variants import C4, FPN, Detector
from big_vision_lite.heads.head import Batch, Head, MainMetric, Metrics, Prediction, view_of
from big_vision_lite.system.fields import at_least


@dataclasses.dataclass(frozen=True)
class FasterRCNN(Head):
    """Detection in two stages: proposals, then class and refined box of each.

    Crowds are ignore regions: anchors and proposals more than half covered by one are never negatives.
    Raises: UserError for a field out of range.
    """

    variant: C4 | FPN = C4()
    """Which features are used, and by which second stage."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of anchors."""
    rpn_iou: tuple[float, float] = (0.3, 0.7)
    """Anchors with an IoU below the first are background, from the second up objects, in between neither."""
    rpn_samples: int = 256
    """Anchors per image that the RPN learns from."""
    rpn_positives: float = 0.5
    """Maximum share of objects among them."""
    rpn_nms: float = 0.7
    """IoU above which the better of two proposals suppresses the other."""
    roi_iou: float = 0.5
    """Proposals with this IoU or more are objects, the others background."""
    roi_positives: float = 0.25
    """Maximum share of objects among the boxes that the second stage learns from."""
    beta: float = 0.0
    """Where the smooth L1 loss of offsets turns from quadratic to linear; 0: L1 (torchvision: 1/9)."""
    box_weight: float = 1.0
    """Factor on both losses of offsets (2 in Huang et al.'s code)."""
    score_threshold: float = 0.05
    """Minimum probability of a detection."""
    nms_iou: float = 0.5
    """IoU above which the better of two detections of a class suppresses the other (0.6 in Huang et al.)."""
    pre_nms_topk: int = 2000
    """Best pairs of proposal and class per image that enter suppression."""
    max_detections: int = 100
    """Detections per image."""
    max_boxes: int = 100
    """Slots for annotated boxes per image. More boxes are an error, never dropped silently."""
    difficult: Literal["train", "ignore"] = "train"
    """Objects marked difficult (VOC): learn from them, or treat them as crowds. VOC's metrics never count them."""
    metric: Literal["AP", "AP50", "VOC_AP50", "VOC07_AP50"] = "AP"
    """The main metric."""

    def __post_init__(self) -> None:
        shares = {"rpn_positives": self.rpn_positives, "roi_positives": self.roi_positives, "rpn_nms": self.rpn_nms,
                  "nms_iou": self.nms_iou, "roi_iou": self.roi_iou, "rpn_iou[0]": self.rpn_iou[0],
                  "rpn_iou[1]": self.rpn_iou[1]}
        wrong = [f"{name}={value}" for name, value in shares.items() if not 0.0 <= value <= 1.0]
        if wrong or self.rpn_iou[0] > self.rpn_iou[1]:
            raise UserError(f"FasterRCNN: {', '.join(wrong) or f'rpn_iou={self.rpn_iou}'}; expected shares from 0 to "
                            "1, and rpn_iou with the smaller first")
        at_least(self, 1, "rpn_samples", "pre_nms_topk", "max_detections", "max_boxes")
        at_least(self, 0, "beta", "box_weight", "score_threshold")
        if min(self.aspect_ratios, default=0) <= 0:
            raise UserError(f"FasterRCNN: aspect_ratios={self.aspect_ratios}; expected at least one, each above 0")

    def build(self, backbone: BackboneModule, data: DatasetInfo, rngs: nnx.Rngs) -> Detector:
        """Raises: UserError when backbone and variant do not fit."""
        return self.variant.build(backbone, len(data.classes), len(self.aspect_ratios), rngs)

    def targets(self, example: Example) -> dict[str, np.ndarray]:
        """The objects, in pixels of the image, padded to ``max_boxes``, and the image's view (see `view_of`).

        Raises: UserError when an image has more boxes than slots, or no annotation of boxes.
        """
        boxes = np.asarray(example.get("boxes", np.zeros((0, 4))), np.float32).reshape(-1, 4)
        count = len(boxes)
        if example["id"] and not ("boxes" in example or example.get("unlabelled")):
            raise UserError(f"image {example['id']!r} has no boxes; detection needs a source with boxes, and a joint "
                            "transform, which moves them along")
        if count > self.max_boxes:
            raise UserError(f"image {example['id']!r} has {count} boxes; the head has room for max_boxes="
                            f"{self.max_boxes}; raise it")
        kind = np.full(count, OBJECT, np.int32)
        for name in ("crowd", "difficult") if self.difficult == "ignore" else ("crowd",):
            kind[np.asarray(example.get(name, np.zeros(count)), bool)] = IGNORED
        objects = {"boxes": boxes, "kind": kind,
                   "box_labels": np.asarray(example.get("box_labels", np.zeros(count)), np.int32)}
        padded = {name: np.full((self.max_boxes, *value.shape[1:]), PADDING, value.dtype)
                  for name, value in objects.items()}
        for name, value in objects.items():
            padded[name][:count] = value
        return padded | view_of(example)

    def loss(self, model: Detector, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """The sum of four losses, each of them a metric too."""
        maps = model.maps(batch["image"], train=True, keys=batch["key"])
        logits, deltas, anchors, counts = self._anchored(model, maps)
        proposals = self._propose(logits, deltas, anchors, counts, batch, 0)
        return self._loss(model, maps, logits, deltas, anchors, proposals, batch, train=True)

    def predict(self, model: Detector, batch: Batch) -> dict[str, Array]:
        """``boxes`` ``[b, d, 4]`` in pixels of the batch's images, ``scores``, ``labels`` and ``valid`` ``[b, d]``,
        and ``loss`` ``[b]``: the training loss in inference mode, on the proposals of evaluation."""
        maps = model.maps(batch["image"], train=False)
        logits, deltas, anchors, counts = self._anchored(model, maps)
        boxes, valid = proposals = self._propose(logits, deltas, anchors, counts, batch, 1)
        detections = jax.vmap(partial(detect, threshold=self.score_threshold, nms_iou=self.nms_iou,
                                      pre_nms_topk=self.pre_nms_topk, max_detections=self.max_detections))(
            *model.classify(maps, boxes, train=False), boxes, valid, batch["size"])
        loss, _ = self._loss(model, maps, logits, deltas, anchors, proposals, batch, train=False)
        return {**detections, "loss": loss}

    def _anchored(self, model: Detector, maps: tuple[Array, ...]):
        anchors = [grid_anchors(*x.shape[1:3], stride, sizes, self.aspect_ratios)
                   for x, stride, sizes in zip(maps, model.strides, model.sizes, strict=True)]
        return *model.rpn(maps), jnp.asarray(np.concatenate(anchors)), tuple(map(len, anchors))

    def _propose(self, logits, deltas, anchors, counts, batch: Batch, mode: int) -> tuple[Array, Array]:
        """``mode``: 0 in training, 1 in evaluation."""
        of_image = partial(propose, counts=counts, pre_nms_topk=self.variant.pre_nms_topk[mode],
                           post_nms_topk=self.variant.post_nms_topk[mode], threshold=self.rpn_nms)
        return jax.vmap(of_image, in_axes=(0, 0, None, 0))(logits, deltas, anchors, batch["size"])

    def _loss(self, model: Detector, maps, logits, deltas, anchors, proposals, batch: Batch,
              train: bool) -> tuple[Array, dict[str, Array]]:
        truth, kind, labels = batch["boxes"], batch["kind"], batch["box_labels"]
        keys = jax.vmap(lambda key: jax.random.split(jax.random.wrap_key_data(key, impl="threefry2x32")))(batch["key"])
        low, high = self.rpn_iou
        rpn = partial(sampled_rpn_loss, low=low, high=high, samples=self.rpn_samples, fraction=self.rpn_positives,
                      beta=self.beta)
        objectness, rpn_box = jax.vmap(rpn, in_axes=(0, 0, None, 0, 0, 0, 0))(
            logits, deltas, anchors, truth, kind, batch["size"], keys[:, 0])
        choose = partial(choose_rois, rois_per_image=self.variant.rois_per_image, fraction=self.roi_positives,
                         threshold=self.roi_iou)
        rois, sampled, classes, objects = jax.vmap(choose)(*proposals, truth, labels, kind, keys[:, 1])
        classification, box = jax.vmap(partial(box_loss, beta=self.beta))(
            *model.classify(maps, rois, train, batch["key"]), rois, sampled, classes, objects)
        metrics = {"objectness_loss": objectness, "rpn_box_loss": rpn_box, "class_loss": classification,
                   "box_loss": box}
        return objectness + classification + self.box_weight * (rpn_box + box), metrics

    def metrics(self, dataset: Dataset) -> Metrics:
        return FasterRCNNMetrics(dataset, self.metric)

    def check_eval(self, dataset: Dataset) -> None:
        check_objects(dataset)

    def main_metric(self, data: DatasetInfo) -> MainMetric:
        return MainMetric(self.metric)

    def to_json(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """"detections" by falling score, each with "box" ([x1, y1, x2, y2] in pixels of the original image), "score"
        and "label"."""
        boxes = to_original(outputs["boxes"], batch)
        return [{"detections": [{"box": [round(float(v), 2) for v in box], "score": round(float(score), 6),
                                 "label": classes[label]}
                                for box, score, label, valid in zip(*rows, strict=True) if valid]}
                for rows in zip(boxes, outputs["scores"], outputs["labels"], outputs["valid"], strict=True)]

    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        draw_boxes(path, batch, outputs, classes)

    def annotate(self, photo: UInt8[np.ndarray, "h w 3"], prediction: Prediction, classes: tuple[str, ...],
                 score: float | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """Boxes with their labels, from a score of 0.3 on unless ``score`` says another."""
        return annotate_boxes(photo, prediction.values["detections"], classes, SHOWN if score is None else score)
