"""Average precision of poses by object keypoint similarity (OKS), as COCO defines it: by hotcoco, with pycocotools'
numbers (a test holds them equal)."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from big_vision_lite.evaluation.boxes import xywh
from big_vision_lite.evaluation.coco_ap import summarize

NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")
"""COCO's ten metrics of keypoints in its order. AP and AR are means over an OKS of 0.5 to 0.95, with at most 20 poses
per image; medium is an annotated area of 32 x 32 to 96 x 96 pixels of the original image, large one above."""


class TrueObjects(NamedTuple):
    """Annotated objects, in pixels of the original images."""

    image: np.ndarray
    """int64 ``[n]``: index of the image among those evaluated."""
    label: np.ndarray
    """int64 ``[n]``"""
    boxes: np.ndarray
    """float64 ``[n, 4]``: (x1, y1, x2, y2), from edge to edge."""
    area: np.ndarray
    """float64 ``[n]``: as annotated, else of the box."""
    keypoints: np.ndarray
    """float64 ``[n, k, 3]``: x, y and visibility."""
    crowd: np.ndarray
    """bool ``[n]``: several objects in one box."""
    ignored: np.ndarray
    """bool ``[n]``: need not be found, such as objects without labelled keypoints."""


class Poses(NamedTuple):
    """Predicted poses, indexed and in coordinates as `TrueObjects`."""

    image: np.ndarray
    label: np.ndarray
    keypoints: np.ndarray
    """float64 ``[n, k, 3]``: x, y and score."""
    area: np.ndarray
    """float64 ``[n]``: of the box in which the pose was found."""
    score: np.ndarray
    """float64 ``[n]``: higher is more confident."""


def oks_ap(truth: TrueObjects, poses: Poses, images: int, num_classes: int,
           sigmas: Sequence[float]) -> dict[str, float | None]:
    """COCO's metrics of keypoints (`NAMES`); None for one without objects.

    Args:
      images: number of images evaluated; ``image`` counts them from 0.
      sigmas: of each keypoint, see `data.keypoints.KeypointSet`.
    """
    from hotcoco import COCO, COCOeval

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "hotcoco: kpt_oks_sigmas differ")
        dataset = truth_json(truth, images, num_classes)
        reference, results = COCO(dataset), results_json(poses)
        found = reference.load_res(results) if results else COCO({**dataset, "annotations": []})
        evaluation = COCOeval(reference, found, "keypoints")
        evaluation.params.kpt_oks_sigmas = list(sigmas)
        return summarize(evaluation, num_classes, NAMES).metrics


def truth_json(truth: TrueObjects, images: int, num_classes: int) -> dict:
    """The contents of COCO's annotation file, with ids from 1. An ignored object has no labelled keypoints."""
    visible = np.where(truth.ignored[:, None], 0, truth.keypoints[..., 2] > 0).sum(1)
    columns = (truth.image + 1, truth.label + 1, xywh(truth.boxes), truth.area, truth.crowd, visible,
               _flat(truth.keypoints))
    names = ("image_id", "category_id", "bbox", "area", "iscrowd", "num_keypoints", "keypoints")
    return {
        "images": [{"id": i + 1, "file_name": str(i), "height": 1, "width": 1} for i in range(images)],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(num_classes)],
        "annotations": [{"id": k} | {name: int(value) if name == "iscrowd" else value
                                     for name, value in zip(names, row, strict=True)}
                        for k, row in enumerate(zip(*(c.tolist() for c in columns), strict=True), 1)],
    }


def results_json(poses: Poses) -> list[dict]:
    """COCO's results format."""
    columns = (poses.image + 1, poses.label + 1, _flat(poses.keypoints), poses.score)
    return [{"image_id": image, "category_id": label, "keypoints": keypoints, "score": score}
            for image, label, keypoints, score in zip(*(c.tolist() for c in columns), strict=True)]


def _flat(keypoints: np.ndarray) -> np.ndarray:
    """``[n, k, 3]`` as COCO has them, ``[n, 3 k]``."""
    return keypoints.reshape(len(keypoints), 3 * keypoints.shape[1])


def oks(pose: np.ndarray, others: np.ndarray, area: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """float64 ``[n]``: object keypoint similarity, the mean of ``exp(-d^2 / (2 area (2 sigma)^2))`` over keypoints.

    Args:
      pose: ``[k, 2]`` in pixels.
      others: ``[n, k, 2]``
      area: ``[n]`` in square pixels.
      sigmas: ``[k]``
    """
    distance = ((others - pose) ** 2).sum(-1)
    return np.exp(-distance / (2 * np.maximum(area, 1e-9)[:, None] * (2 * sigmas) ** 2)).mean(1)


def oks_nms(keypoints: np.ndarray, area: np.ndarray, score: np.ndarray, sigmas: np.ndarray,
            threshold: float) -> np.ndarray:
    """Which poses of an image to keep, best first: going down the list, each whose similarity with every kept one is at
    most ``threshold`` (Papandreou et al. 2017, section 2.3; with the mean of both areas, as in Xiao et al.'s code).

    Args:
      keypoints: ``[n, k, 2]`` in pixels.
      area, score: ``[n]``
    """
    remaining, keep = np.argsort(-score, kind="stable"), []
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        keep.append(best)
        similarity = oks(keypoints[best], keypoints[remaining], (area[best] + area[remaining]) / 2, sigmas)
        remaining = remaining[similarity <= threshold]
    return np.array(keep, np.int64)
