"""Average precision as COCO defines it: by pycocotools, whose numbers are the official ones, and by a faster equal.

hotcoco computes the same figures (a test holds them equal) some hundred times faster, which is what an evaluation
during training needs. Where it is not installed, pycocotools does all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.evaluation.boxes import Found, Truth, xywh

NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small", "AR_medium",
         "AR_large")
"""COCO's twelve figures in its order. AP and AR are means over IoU 0.5 to 0.95; small is an annotated area below
32 x 32 pixels of the original image, large one above 96 x 96; 1, 10 and 100 count detections of a class in an image."""


class CocoAp(NamedTuple):
    figures: dict[str, float]
    """Those of `NAMES` for which there are objects at all."""
    ap: np.ndarray
    """float64 ``[classes]``: AP of each class; NaN for one without objects."""
    ap50: np.ndarray
    """The same at an IoU of 0.5."""


def coco_ap(truth: Truth, found: Found, images: int, classes: int, official: bool = False) -> CocoAp:
    """COCO's figures of boxes.

    Args:
      images: how many were looked at; ``image`` counts them from 0.
      official: by pycocotools, whatever is installed.
    """
    fast = not official and importlib.util.find_spec("hotcoco") is not None
    described = {
        "images": [{"id": i + 1, "file_name": str(i), "height": 1, "width": 1} for i in range(images)],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(classes)],
    }
    columns = (truth.image + 1, truth.label + 1, xywh(truth.boxes), truth.area, truth.crowd)
    annotations = [  # ids from 1: the original takes an object of id 0 for none
        {"id": k, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for k, (image, label, box, area, crowd) in enumerate(zip(*(c.tolist() for c in columns), strict=True), 1)]
    rows = np.column_stack([found.image + 1, xywh(found.boxes), found.score, found.label + 1])
    with contextlib.redirect_stdout(io.StringIO()):
        if fast:
            from hotcoco import COCO, COCOeval

            there = COCO({**described, "annotations": annotations})
            seen = there.load_res(rows) if len(rows) else COCO({**described, "annotations": []})
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            there, seen = COCO(), COCO()
            there.dataset, seen.dataset = {**described, "annotations": annotations}, {**described, "annotations": []}
            there.createIndex()
            seen.createIndex()
            if len(rows):
                seen = there.loadRes(rows)
        return _evaluated(COCOeval(there, seen, "bbox"), classes)


def _evaluated(evaluation: Any, classes: int) -> CocoAp:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # [IoU, recall, class], all areas, 100 found
    known = precision[0, 0] > -1
    ap, ap50 = np.full(classes, np.nan), np.full(classes, np.nan)
    ap[known], ap50[known] = precision[:, :, known].mean((0, 1)), precision[0][:, known].mean(0)
    return CocoAp({n: float(x) for n, x in zip(NAMES, evaluation.stats, strict=True) if x > -1}, ap, ap50)


def official_ap(annotations: Path, results: Path) -> dict[str, float]:
    """COCO's figures of a file of results against a file of annotations, by pycocotools alone: for publication.

    They can differ in the last digits from those that are made from records, which are float32 fractions of an image,
    and where the file has boxes without area: readers drop and count them, and here they still are to be found.

    Raises:
      UserError: a file cannot be read or is not of COCO's format, or a result is of an image or a category that the
        annotations do not have.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    there, found = _json(annotations), _json(results)
    if not isinstance(there, dict) or not all(isinstance(there.get(k), list) for k in
                                              ("images", "annotations", "categories")):
        raise UserError(f"{annotations} is not of COCO's format; expected images, annotations and categories")
    _check_results(results, found, annotations, there)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = there
        reference.createIndex()
        if found:
            seen = reference.loadRes(found)
        else:
            seen = COCO()
            seen.dataset = {**there, "annotations": []}
            seen.createIndex()
        return _evaluated(COCOeval(reference, seen, "bbox"), len(reference.getCatIds())).figures


def _check_results(path: Path, found: Any, annotations: Path, there: dict) -> None:
    """Raises: UserError."""
    if not isinstance(found, list):
        raise UserError(f"{path} is not a list; expected COCO's results: image_id, category_id, bbox and score of each "
                        "detection")
    images = {image["id"] for image in there["images"]}
    categories = {category["id"] for category in there["categories"]}
    for place, row in enumerate(found):
        box = row.get("bbox") if isinstance(row, dict) else None
        numbers = [*box, row.get("score")] if isinstance(box, list) else []
        if len(numbers) != 5 or not all(isinstance(x, int | float) for x in numbers):
            raise UserError(f"{path}: result {place} is {str(row)[:80]}; expected image_id, category_id, bbox "
                            "[left, top, width, height] and score")
        if row.get("image_id") not in images:
            raise UserError(f"{path}: result {place} is of image {row.get('image_id')!r}, which {annotations} does not "
                            "have; score the results of that file's images")
        if row.get("category_id") not in categories:
            raise UserError(f"{path}: result {place} is of category {row.get('category_id')!r}, and {annotations} has "
                            f"none of that id{nearest(str(row.get('category_id')), map(str, categories))}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); it may have been cut") from None
