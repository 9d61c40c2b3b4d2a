"""Average precision as COCO defines it, by hotcoco: pycocotools' numbers (a test holds them equal), far faster."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np

from big_vision_lite.evaluation.boxes import Detections, GroundTruth, xywh

NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small", "AR_medium",
         "AR_large")
"""COCO's twelve metrics in its order. AP and AR are means over IoU 0.5 to 0.95; small is an annotated area below 32 x
32 pixels of the original image, large one above 96 x 96; 1, 10 and 100 are detections of a class per image."""


class CocoAp(NamedTuple):
    metrics: dict[str, float | None]
    """Those of `NAMES`; None for one without objects."""
    ap: np.ndarray
    """float64 ``[classes]``: AP of each class; NaN for one without objects."""
    ap50: np.ndarray
    """The same at an IoU of 0.5."""
    precision50: np.ndarray
    """float64 ``[101]``: precision at an IoU of 0.5 and recalls of 0, 0.01, ..., 1, the mean over classes with objects;
    NaN if none has any."""


def coco_ap(truth: GroundTruth, detections: Detections, images: int, num_classes: int) -> CocoAp:
    """COCO's metrics of boxes.

    Args:
      images: number of images evaluated; ``image`` counts them from 0.
    """
    from hotcoco import COCO, COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = coco_json(truth, images, num_classes)
        reference, rows = COCO(dataset), result_rows(detections)
        results = reference.load_res(rows) if len(rows) else COCO({**dataset, "annotations": []})
        return summarize(COCOeval(reference, results, "bbox"), num_classes)


def summarize(evaluation: Any, num_classes: int, names: tuple[str, ...] = NAMES) -> CocoAp:
    """Run a ``COCOeval``, of hotcoco or pycocotools, whose statistics have these names."""
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # [IoU, recall, class]: all areas, AR100
    has_objects = precision[0, 0] > -1
    ap, ap50 = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    ap[has_objects], ap50[has_objects] = precision[:, :, has_objects].mean((0, 1)), precision[0][:, has_objects].mean(0)
    curve = precision[0][:, has_objects].mean(1) if has_objects.any() else np.full(precision.shape[1], np.nan)
    stats = zip(names, evaluation.stats, strict=True)
    return CocoAp({name: float(value) if value > -1 else None for name, value in stats}, ap, ap50, curve)


def coco_json(truth: GroundTruth, images: int, num_classes: int) -> dict:
    """The contents of COCO's annotation file, with ids from 1: pycocotools takes an object of id 0 for none."""
    columns = (truth.image + 1, truth.label + 1, xywh(truth.boxes), truth.area, truth.crowd)
    return {
        "images": [{"id": i + 1, "file_name": str(i), "height": 1, "width": 1} for i in range(images)],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(num_classes)],
        "annotations": [
            {"id": k, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for k, (image, label, box, area, crowd) in enumerate(zip(*(c.tolist() for c in columns), strict=True), 1)],
    }


def result_rows(detections: Detections) -> np.ndarray:
    """float64 ``[n, 7]``: image id, left, top, width, height, score, category id."""
    return np.column_stack([detections.image + 1, xywh(detections.boxes), detections.score, detections.label + 1])
