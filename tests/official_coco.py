"""COCO's metrics by pycocotools, whose numbers are the official ones."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from made_files import jpeg
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.evaluation import oks_ap
from big_vision_lite.evaluation.coco_ap import CocoAp, coco_json, result_rows, summarize


def official_ap(truth, detections, images, num_classes) -> CocoAp:
    """As ``coco_ap``."""
    return _evaluate(coco_json(truth, images, num_classes), result_rows(detections))


def official_metrics(annotations: Path, results: Path) -> dict[str, float]:
    """Of a file of annotations and one of results."""
    return _evaluate(json.loads(annotations.read_text()), json.loads(results.read_text())).metrics


def _evaluate(dataset, results) -> CocoAp:
    with contextlib.redirect_stdout(io.StringIO()):
        reference, detected = COCO(), COCO()
        reference.dataset, detected.dataset = dataset, {**dataset, "annotations": []}
        reference.createIndex()
        detected.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results) if len(results) else detected, "bbox")
        return summarize(evaluation, len(dataset["categories"]))


def official_oks(dataset, results, sigmas, num_classes) -> dict[str, float]:
    """As ``oks_ap``, of the contents of a file of annotations and one of results."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = dataset
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        return summarize(evaluation, num_classes, oks_ap.NAMES).metrics


def coco_file(folder, *more):
    """A source with gaps among its ids, a crowd, an image without boxes and a category without objects."""
    for i in (7, 9, 4):
        (folder / f"{i}.jpg").write_bytes(jpeg(200, 100, seed=i))
    boxes = [(7, 90, [20, 10, 60, 40], 0), (7, 13, [100.5, 50.25, 30, 20], 0), (9, 90, [0, 0, 200, 100], 1),
             (9, 90, [5, 5, 40, 40], 0), *more]
    data = {"images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} for i in (7, 9, 4)],
            "annotations": [{"id": k, "image_id": i, "category_id": c, "bbox": b, "iscrowd": crowd, "area": b[2] * b[3]}
                            for k, (i, c, b, crowd) in enumerate(boxes, 1)],
            "categories": [{"id": 13, "name": "sign"}, {"id": 90, "name": "brush"}, {"id": 70, "name": "gap"}]}
    (folder / "instances.json").write_text(json.dumps(data))
    return CocoJson(str(folder / "instances.json"), str(folder))
