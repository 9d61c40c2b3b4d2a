"""Scores of detections at the images' original size: COCO's figures, VOC's, and results in COCO's format."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.source import Example, Records
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.evaluation.boxes import Found, Truth, joined, xywh
from big_vision_lite.evaluation.coco_ap import CocoAp, coco_ap
from big_vision_lite.evaluation.voc_ap import VocAp, voc_ap

_truths: weakref.WeakKeyDictionary[Records, dict[int, tuple[int, Truth]]] = weakref.WeakKeyDictionary()
"""Of each index its image id and objects: a run is scored many times, and reads the files of its images once for it."""


class DetectionScores:
    """Gathers detections and scores them against the objects of ``records``, whose files are read but not decoded.

    Boxes count in pixels of the original, upright images: (xmin, ymin, xmax, ymax), edges and not centres.
    """

    def __init__(self, records: Records):
        self.records = records
        self._found: dict[int, tuple[np.ndarray, ...]] = {}  # of each index: labels, boxes, scores

    def add(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, valid: np.ndarray, index: np.ndarray,
            mask: np.ndarray) -> None:
        """Take the detections of a batch.

        Args:
          boxes: ``[b, D, 4]`` in pixels of the original image.
          scores, labels: ``[b, D]``
          valid: bool ``[b, D]``, which of the D places hold a detection.
          index: ``[b]``, of each image in the records; -1 for padding.
          mask: bool ``[b]``; False: padding or an image that could not be read, which is left out.

        Raises:
          UserError: a box or a score is not finite.
          ValueError: a label is no class, or an image was added before.
        """
        for row in np.flatnonzero(mask & (index >= 0)):
            image, real = int(index[row]), np.flatnonzero(valid[row])
            found = labels[row, real].astype(np.int64), boxes[row, real].astype(np.float64), scores[row, real].astype(
                np.float64)
            if not (np.isfinite(found[1]).all() and np.isfinite(found[2]).all()):
                raise UserError(f"a detection in image number {image} is not finite; training has diverged: lower the "
                                "learning rate or take an earlier checkpoint")
            if image in self._found:
                raise ValueError(f"image number {image} was added twice; expected every image once")
            if len(real) and not 0 <= found[0].min() <= found[0].max() < len(self.records.classes):
                raise ValueError(f"a detection in image number {image} has label {found[0].max()}; expected 0 to "
                                 f"{len(self.records.classes) - 1}")
            self._found[image] = found

    def result(self, official: bool = False) -> dict[str, float]:
        """``AP``, ``AP50`` and COCO's other figures (see `coco_ap.NAMES`; one for which there are no objects is left
        out), ``VOC_AP50`` (area under the curve, VOC 2010 and later) and ``VOC07_AP50`` (eleven points), each the mean
        over the classes that have objects, and ``images``. Difficult objects are optional in VOC's figures only: COCO
        knows none. Crowds are optional in both.

        Args:
          official: by pycocotools, however long it takes.

        Raises:
          UserError: there is no object to be found in the images.
        """
        coco, voc = self._scored(official)
        return {**coco.figures, "VOC_AP50": _mean(voc.area), "VOC07_AP50": _mean(voc.eleven),
                "images": float(len(self._found))}

    def per_class(self, official: bool = False) -> dict[str, dict[str, float]]:
        """The same of each class that has objects: ``AP``, ``AP50``, ``VOC_AP50``, ``VOC07_AP50``, ``objects``. A
        figure for which all of a class's objects are optional (crowds, difficult ones) is left out."""
        coco, voc = self._scored(official)
        columns = {"AP": coco.ap, "AP50": coco.ap50, "VOC_AP50": voc.area, "VOC07_AP50": voc.eleven}
        table = {}
        for c, name in enumerate(self.records.classes):
            figures = {key: float(column[c]) for key, column in columns.items() if not np.isnan(column[c])}
            if figures:
                table[name] = {**figures, "objects": float(voc.objects[c])}
        return table

    def write_coco_results(self, path: Path) -> None:
        """A file of results in COCO's format, with the ids of images and categories that the annotations have; where
        they have none, images count from 0 and categories from 1."""
        ids, rows = category_ids(self.records), []
        for image in sorted(self._found):
            labels, boxes, scores = self._found[image]
            image_id = self._image_id(image)
            rows += [{"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
                     for label, box, score in zip(labels.tolist(), xywh(boxes).tolist(), scores.tolist(), strict=True)]
        path.write_text(json.dumps(rows))

    def check_coco_ids(self) -> None:
        """Raises: UserError when the records do not know the ids that the annotations have."""
        source = _source_of(self.records)
        if not hasattr(source, "category_ids"):
            raise UserError(f"{type(source).__name__.removesuffix('Records')} does not know COCO's ids of images and "
                            "categories, which a file of results names; take COCO's own json: CocoJson, or on the "
                            "command line --source FILE.json:images=FOLDER")

    def _image_id(self, index: int) -> int:
        if (ids := getattr(self.records, "image_ids", None)) is not None:
            return int(ids[index])
        known = _truths.get(self.records, {})
        return known[index][0] if index in known else self.records[index].get("image_id", index)

    def _scored(self, official: bool) -> tuple[CocoAp, VocAp]:
        images, classes = sorted(self._found), len(self.records.classes)
        if not images:
            raise UserError("no image was evaluated; expected at least one with an object in it")
        truth = joined([self._truth(i)[1]._replace(image=np.full(len(self._truth(i)[1].label), place))
                        for place, i in enumerate(images)])
        if not len(truth.label):
            raise UserError(f"none of the {len(images):,} images has an object to be found; choose a split with boxes")
        found = joined([Found(np.full(len(scores), place), labels, boxes, scores)
                        for place, (labels, boxes, scores) in enumerate(self._found[i] for i in images)])
        return (coco_ap(truth, found, len(images), classes, official), voc_ap(truth, found, classes))

    def _truth(self, index: int) -> tuple[int, Truth]:
        known = _truths.setdefault(self.records, {})
        if index not in known:
            known[index] = truth_of(self.records[index], index)
        return known[index]


def truth_of(example: Example, index: int) -> tuple[int, Truth]:
    """The number of an image in its file of annotations (without one, ``index``), and its objects.

    Raises:
      BadImageError: the size of the image cannot be read.
      UserError: the source has no boxes.
    """
    if "boxes" not in example:
        raise UserError(f"image {example['id']!r} has no boxes, nor has its source; detection needs one that has, such "
                        "as CocoJson or VocTree, and no curation but a Vocabulary that changes labels")
    try:
        height, width = image_size(example["image"])
    except DecodeError as error:
        raise BadImageError(example["id"], str(error)) from error
    boxes = (example["boxes"].astype(np.float64) * ([height, width] * 2))[:, [1, 0, 3, 2]]
    count = len(boxes)
    none = np.zeros(count, np.bool_)
    area = example.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(1))
    return example.get("image_id", index), Truth(
        np.zeros(count, np.int64), example["box_labels"].astype(np.int64), boxes, area.astype(np.float64),
        example.get("crowd", none), example.get("difficult", none))


def category_ids(records: Any) -> tuple[int, ...]:
    """The annotations' own number of each class; without such, 1, 2, ..."""
    source = _source_of(records)
    known = dict(zip(source.classes, getattr(source, "category_ids", ()), strict=False))
    if all(name in known for name in records.classes):
        return tuple(known[name] for name in records.classes)
    return tuple(range(1, len(records.classes) + 1))


def _source_of(records: Any) -> Any:
    """What is below curation."""
    while not hasattr(records, "category_ids") and isinstance(getattr(records, "source", None), Records):
        records = records.source
    return records


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
