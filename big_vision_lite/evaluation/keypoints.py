"""Metrics of poses at the images' original size, and results in COCO's format."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.keypoints import KeypointSet
from big_vision_lite.data.source import Dataset, Example, has_keypoints
from big_vision_lite.data.sources.box_records import INVERSE, turn_points
from big_vision_lite.data.sources.coco_json import CocoDataset
from big_vision_lite.data.sources.coco_keypoints import PIXEL_CENTRE
from big_vision_lite.data.sources.per_object import objects_below
from big_vision_lite.errors import BadImageError, UserError, writing
from big_vision_lite.evaluation.boxes import joined
from big_vision_lite.evaluation.oks_ap import Poses, TrueObjects, oks_ap, oks_nms
from big_vision_lite.evaluation.scorable import check_scorable

_truths: weakref.WeakKeyDictionary[Dataset, dict[int, TrueObjects]] = weakref.WeakKeyDictionary()
"""Objects by index of the image: a run is evaluated many times, but reads the headers of its images only once."""


class _Pose(NamedTuple):
    label: int
    number: int  # of the annotated object whose box it was found in; -1: a detector's box
    keypoints: np.ndarray  # [k, 3], x, y and score
    area: float
    score: float


class KeypointMetrics:
    """Collects the poses of a `PerObject` dataset, curated or not, and compares them per image with the annotated
    objects, after suppression of nearly equal poses.

    With annotated boxes, objects whose boxes were not used (left out by curation, or unreadable) are ignored. With a
    detector's boxes, all images of the source count, also those in which nothing was detected.

    Args:
      nms_oks: similarity above which the better of two poses of a class suppresses the other.
    """

    def __init__(self, dataset: Dataset, keypoints: KeypointSet, nms_oks: float):
        self.objects, self.classes = objects_below(dataset), dataset.classes
        self.keypoints, self.nms_oks = keypoints, nms_oks
        self._poses: dict[int, list[_Pose]] = {}  # by image

    def add(self, points: np.ndarray, scores: np.ndarray, pose_scores: np.ndarray,
            batch: dict[str, np.ndarray]) -> None:
        """Add the poses of a batch.

        Args:
          points: ``[b, k, 2]`` (x, y) in pixels of the original, upright image.
          scores: ``[b, k]``, of each keypoint.
          pose_scores: ``[b]``
          batch: has "box" ``[b, 4]`` in the same pixels, "label", "image_index", "object_index" and "mask" ``[b]``.

        Raises:
          UserError: a point or a score is not finite.
        """
        for row in np.flatnonzero(batch["mask"]):
            keypoints = np.concatenate([points[row], scores[row][:, None]], 1).astype(np.float64)
            if not (np.isfinite(keypoints).all() and np.isfinite(pose_scores[row])):
                raise UserError("a keypoint is not finite; training has diverged: lower the learning rate or take an "
                                "earlier checkpoint")
            x1, y1, x2, y2 = batch["box"][row].astype(np.float64)
            self._poses.setdefault(int(batch["image_index"][row]), []).append(_Pose(
                int(batch["label"][row]), int(batch["object_index"][row]), keypoints, (x2 - x1) * (y2 - y1),
                float(pose_scores[row])))

    def result(self) -> dict[str, float | None]:
        """`oks_ap.NAMES`."""
        images = range(len(self.objects.images)) if self.objects.detected else sorted(self._poses)
        truth, poses = (joined([_nothing(kind, len(self.keypoints)), *(
            rows._replace(image=np.full(len(rows.label), place)) for place, rows in enumerate(map(of_image, images)))])
            for kind, of_image in ((TrueObjects, self._truth), (Poses, self._remaining)))
        return oks_ap(truth, poses, len(images), len(self.classes), self.keypoints.sigmas)

    def _remaining(self, image: int) -> Poses:
        """The poses of an image that are not suppressed, best first within each class."""
        poses = self._poses.get(image, [])
        kept = [_nothing(Poses, len(self.keypoints))]
        for label in sorted({pose.label for pose in poses}):
            keypoints, area, score = (np.array([getattr(pose, name) for pose in poses if pose.label == label])
                                      for name in ("keypoints", "area", "score"))
            keep = oks_nms(keypoints[..., :2], area, score, np.array(self.keypoints.sigmas), self.nms_oks)
            kept.append(Poses(np.full(len(keep), image), np.full(len(keep), label), keypoints[keep], area[keep],
                              score[keep]))
        return joined(kept)

    def _truth(self, image: int) -> TrueObjects:
        cached = _truths.setdefault(self.objects.images, {})
        if image not in cached:
            cached[image] = truth_of(self.objects.images[image], len(self.keypoints))
        truth = cached[image]
        label_of = {name: label for label, name in enumerate(self.classes)}
        names = [self.objects.images.classes[label] for label in truth.label]
        truth = truth._replace(label=np.array([label_of.get(name, -1) for name in names], np.int64))
        if not self.objects.detected:
            used = {pose.number for pose in self._poses[image]}
            truth = truth._replace(ignored=truth.ignored | ~np.isin(np.arange(len(names)), list(used)))
        in_classes = truth.label >= 0
        return TrueObjects(*(column[in_classes] for column in truth))

    def check_results(self) -> None:
        """Raises: UserError when the source does not know COCO's ids of images and categories."""
        if not isinstance(self.objects.images, CocoDataset):
            raise UserError(f"{type(self.objects.images).__name__.removesuffix('Dataset')} does not know COCO's ids of "
                            "images and categories, which a results file needs; take COCO's own json: CocoJson, or on "
                            "the command line --source FILE.json:images=FOLDER,keypoints=true")

    def write_coco_results(self, path: Path) -> None:
        """Write results in COCO's format, with the annotations' ids. Raises: UserError, as `check_results`, or the file
        cannot be written."""
        self.check_results()
        images, rows = self.objects.images, []
        category_of = dict(zip(images.classes, images.category_ids, strict=True))
        for image in sorted(self._poses):
            example, poses = images[image], self._remaining(image)
            keypoints = _as_annotated(poses.keypoints, example)
            keypoints[..., :2] -= PIXEL_CENTRE
            rows += [{"image_id": example["image_id"], "category_id": category_of[self.classes[label]],
                      "keypoints": points, "score": score} for label, points, score in zip(
                          poses.label.tolist(), keypoints.reshape(len(keypoints), -1).tolist(), poses.score.tolist(),
                          strict=True)]
        with writing(path):
            path.write_text(json.dumps(rows))


def check_keypoints(dataset: Dataset) -> None:
    """Raises: UserError when the dataset is not one example per object, or no object has labelled keypoints."""
    objects = objects_below(dataset)
    if objects.detected:
        check_scorable(objects.images, lambda index: has_keypoints(objects.images[index]).any(),
                       "an object with labelled keypoints")


def truth_of(example: Example, count: int) -> TrueObjects:
    """The objects of an image.

    Raises:
      BadImageError: the image's header cannot be read.
      UserError: the source has no keypoints, or another number than ``count`` per object.
    """
    if "keypoints" not in example or example["keypoints"].shape[1] != count:
        raise UserError(f"image {example['id']!r} has {example.get('keypoints', np.zeros((0, 0))).shape[1]} keypoints "
                        f"per object; expected the head's {count}")
    try:
        height, width = image_size(example["image"])
    except DecodeError as error:
        raise BadImageError(example["id"], str(error)) from error
    boxes = example["boxes"].astype(np.float64) * ([width, height] * 2)
    keypoints = example["keypoints"].astype(np.float64) * [width, height, 1]
    area = example.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(1)).astype(np.float64)
    labels = example["box_labels"].astype(np.int64)
    return TrueObjects(np.zeros(len(boxes), np.int64), labels, boxes, area, keypoints,
                       example.get("crowd", np.zeros(len(boxes), np.bool_)), ~has_keypoints(example))


def _as_annotated(keypoints: np.ndarray, example: Example) -> np.ndarray:
    """Keypoints ``[n, k, 3]`` in pixels of the upright image to those of the image that was annotated."""
    if "orientation" not in example:
        return keypoints.copy()
    height, width = image_size(example["image"])
    return turn_points(keypoints / [width, height, 1], INVERSE[example["orientation"]]) * [height, width, 1]


def _nothing(kind: type, count: int) -> tuple:
    """No objects, or no poses, of ``count`` keypoints."""
    shapes = {"boxes": (0, 4), "keypoints": (0, count, 3)}
    dtypes = {"image": np.int64, "label": np.int64, "crowd": np.bool_, "ignored": np.bool_}
    return kind(*(np.zeros(shapes.get(name, (0,)), dtypes.get(name, np.float64)) for name in kind._fields))
