"""Metrics of detections at the images' original size: COCO's and VOC's; and results in COCO's format."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.data.sources.box_records import INVERSE, turn_boxes
from big_vision_lite.errors import BadImageError, UserError, writing
from big_vision_lite.evaluation.boxes import NO_DETECTIONS, NO_OBJECTS, Detections, GroundTruth, joined, xywh
from big_vision_lite.evaluation.coco_ap import CocoAp, coco_ap
from big_vision_lite.evaluation.details import Details, class_scores, curve
from big_vision_lite.evaluation.scorable import check_scorable
from big_vision_lite.evaluation.voc_ap import VocAp, voc_ap

_truths: weakref.WeakKeyDictionary[Dataset, dict[int, GroundTruth]] = weakref.WeakKeyDictionary()
"""Objects by index of the image: a run is evaluated many times, but reads the headers of its images only once."""


class DetectionMetrics:
    """Collects detections and compares them with the objects of ``dataset``, whose images are read but not decoded.

    Boxes are (x1, y1, x2, y2) in pixels of the original, upright images, from edge to edge.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._detections: dict[int, tuple[np.ndarray, ...]] = {}  # by index: labels, boxes, scores

    def add(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, valid: np.ndarray, index: np.ndarray,
            mask: np.ndarray) -> None:
        """Add the detections of a batch.

        Args:
          boxes: ``[b, D, 4]`` in pixels of the original image.
          scores, labels: ``[b, D]``
          valid: bool ``[b, D]``, which of the D slots hold a detection.
          index: ``[b]``, of each image in the dataset; -1 for padding.
          mask: bool ``[b]``; False: padding, or an image that could not be read and is left out.

        Raises:
          UserError: a box or a score is not finite.
          ValueError: a label is out of range, or an image was added before.
        """
        for row in np.flatnonzero(mask & (index >= 0)):
            image, slots = int(index[row]), np.flatnonzero(valid[row])
            label, box, score = labels[row, slots].astype(np.int64), *(
                values[row, slots].astype(np.float64) for values in (boxes, scores))
            if not (np.isfinite(box).all() and np.isfinite(score).all()):
                raise UserError(f"a detection in image number {image} is not finite; training has diverged: lower the "
                                "learning rate or take an earlier checkpoint")
            if image in self._detections:
                raise ValueError(f"image number {image} was added twice; expected every image once")
            if len(slots) and not 0 <= label.min() <= label.max() < len(self.dataset.classes):
                raise ValueError(f"a detection in image number {image} has label {label.max()}; expected 0 to "
                                 f"{len(self.dataset.classes) - 1}")
            self._detections[image] = label, box, score

    def result(self) -> dict[str, float | None]:
        """``AP``, ``AP50`` and COCO's other metrics (see `coco_ap.NAMES`), ``VOC_AP50`` (area under the curve, VOC 2010
        and later) and ``VOC07_AP50`` (eleven points), each the mean over the classes that have objects, None if none
        has; and ``images``. Difficult objects are optional in VOC's metrics, crowds in both."""
        coco, voc = self._ap()
        return {**coco.metrics, "VOC_AP50": _mean(voc.area), "VOC07_AP50": _mean(voc.eleven),
                "images": float(len(self._detections))}

    def per_class(self) -> dict[str, dict[str, float]]:
        """``AP``, ``AP50``, ``VOC_AP50``, ``VOC07_AP50`` and ``objects`` of each class that has objects. A metric for
        which all objects of a class are optional (crowds, difficult ones) is left out."""
        coco, voc = self._ap()
        columns = {"AP": coco.ap, "AP50": coco.ap50, "VOC_AP50": voc.area, "VOC07_AP50": voc.eleven}
        table = {}
        for c, name in enumerate(self.dataset.classes):
            metrics = {key: float(column[c]) for key, column in columns.items() if not np.isnan(column[c])}
            if metrics:
                table[name] = {**metrics, "objects": float(voc.objects[c])}
        return table

    def details(self, metric: str) -> Details:
        """``metric`` (one of `per_class`) of each class, and precision against recall at an IoU of 0.5."""
        names, table, curve50 = self.dataset.classes, self.per_class(), self._ap()[0].precision50
        scores = np.array([table.get(name, {}).get(metric, np.nan) for name in names])
        counts = np.array([int(table.get(name, {}).get("objects", 0)) for name in names], np.int64)
        found: Details = {"metric": metric, "classes": class_scores(names, scores, counts)}
        if np.isfinite(curve50).all():
            found["curve"] = curve("recall, at an IoU of 0.5", "precision", np.linspace(0, 1, len(curve50)), curve50)
        return found

    def write_coco_results(self, path: Path) -> None:
        """Write results in COCO's format, with the annotations' ids. Raises: UserError, as `category_ids`, or the file
        cannot be written."""
        ids, rows = self.category_ids(), []
        for image, (labels, boxes, scores) in sorted(self._detections.items()):
            example = self.dataset[image]
            boxes = xywh(_as_annotated(boxes, example))
            rows += [{"image_id": example["image_id"], "category_id": ids[label], "bbox": box, "score": score}
                     for label, box, score in zip(labels.tolist(), boxes.tolist(), scores.tolist(), strict=True)]
        with writing(path):
            path.write_text(json.dumps(rows))

    def category_ids(self) -> list[int | str]:
        """The annotations' own id of each class. Raises: UserError when the dataset does not know them."""
        source = self.dataset
        while not hasattr(source, "category_ids") and isinstance(getattr(source, "source", None), Dataset):
            source = source.source  # below curation
        ids = dict(zip(source.classes, getattr(source, "category_ids", ()), strict=False))
        if not ids.keys() >= set(self.dataset.classes):
            raise UserError(f"{type(source).__name__.removesuffix('Dataset')} does not know COCO's ids of images and "
                            "categories, which a results file needs; take COCO's own json: CocoJson, or on the command "
                            "line --source FILE.json:images=FOLDER")
        return [ids[name] for name in self.dataset.classes]

    def _ap(self) -> tuple[CocoAp, VocAp]:
        images, num_classes = sorted(self._detections), len(self.dataset.classes)
        truth = joined([NO_OBJECTS, *(objects._replace(image=np.full(len(objects.label), place))
                                      for place, objects in enumerate(map(self._truth, images)))])
        detections = joined([NO_DETECTIONS, *(
            Detections(np.full(len(scores), place), labels, boxes, scores)
            for place, (labels, boxes, scores) in enumerate(self._detections[i] for i in images))])
        return coco_ap(truth, detections, len(images), num_classes), voc_ap(truth, detections, num_classes)

    def _truth(self, index: int) -> GroundTruth:
        cached = _truths.setdefault(self.dataset, {})
        if index not in cached:
            cached[index] = truth_of(self.dataset[index])
        return cached[index]


def check_objects(dataset: Dataset) -> None:
    """Raises: UserError as `check_scorable`, when there are no objects but crowds; or no boxes."""
    def counts(index: int) -> bool:
        return len(dataset.labels(index)[1]) > 0 and not truth_of(dataset[index]).crowd.all()

    check_scorable(dataset, counts, "an object that is not a crowd")


def truth_of(example: Example) -> GroundTruth:
    """The objects of an image.

    Raises:
      BadImageError: the image's header cannot be read.
      UserError: the source has no boxes.
    """
    if "boxes" not in example:
        raise UserError(f"image {example['id']!r} has no boxes; detection needs a source with boxes, such as CocoJson "
                        "or VocTree, and no curation of labels but ClassSubset")
    try:
        height, width = image_size(example["image"])
    except DecodeError as error:
        raise BadImageError(example["id"], str(error)) from error
    boxes = example["boxes"].astype(np.float64) * ([width, height] * 2)
    count = len(boxes)
    none = np.zeros(count, np.bool_)
    area = example.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(1))
    return GroundTruth(np.zeros(count, np.int64), example["box_labels"].astype(np.int64), boxes,
                       area.astype(np.float64), example.get("crowd", none), example.get("difficult", none))


def _as_annotated(boxes: np.ndarray, example: Example) -> np.ndarray:
    """Boxes in pixels of the upright image to those of the image that was annotated."""
    if "orientation" not in example:
        return boxes
    height, width = image_size(example["image"])
    fractions = turn_boxes(boxes / ([width, height] * 2), INVERSE[example["orientation"]])
    return fractions * ([height, width] * 2)


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None
