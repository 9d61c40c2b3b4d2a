"""Detections on the host: original pixels, metrics and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from big_vision_lite.data.source import Dataset
from big_vision_lite.evaluation.details import Details
from big_vision_lite.evaluation.detection import DetectionMetrics
from big_vision_lite.heads.head import Metrics


def to_original(boxes: np.ndarray, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Boxes ``[b, d, 4]`` in pixels of a batch's images to pixels of the original ones, clipped to those."""
    scale, size = (np.tile(batch[name][:, None, ::-1].astype(np.float64), 2) for name in ("scale", "original_size"))
    return np.clip(boxes / scale, 0.0, size)


class FasterRCNNMetrics(Metrics):
    """COCO's and VOC's metrics, and the mean loss."""

    def __init__(self, dataset: Dataset, main: str = "AP"):
        self.main = main
        self.scores = DetectionMetrics(dataset)
        self.loss, self.images = 0.0, 0

    def add(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
        self.scores.add(to_original(outputs["boxes"], batch), outputs["scores"], outputs["labels"], outputs["valid"],
                        batch["index"], batch["mask"])
        self.loss += float(outputs["loss"][batch["mask"]].sum(dtype=np.float64))
        self.images += int(batch["mask"].sum())

    def details(self) -> Details:
        return self.scores.details(self.main)

    def check_results(self) -> None:
        """Raises: UserError when the source does not know COCO's ids of images and categories."""
        self.scores.category_ids()

    def write_results(self, path: Path) -> None:
        """COCO's results format: a list of image_id, category_id, bbox and score."""
        self.scores.write_coco_results(path)

    def result(self) -> dict[str, float | None]:
        """As `DetectionMetrics.result`, with "loss" and "images"."""
        return {**self.scores.result(), "loss": self.loss / max(self.images, 1), "images": self.images}
