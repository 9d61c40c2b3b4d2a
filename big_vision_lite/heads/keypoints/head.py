"""The keypoint head: model, loss, metrics and pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.backbones.backbone import BackboneModule, Keys
from big_vision_lite.data.keypoints import COCO_PERSON, KeypointSet
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.keypoints import KeypointMetrics, check_keypoints
from big_vision_lite.heads.head import Batch, Head, MainMetric, Metrics, Prediction
from big_vision_lite.heads.keypoints.codec import Grid
from big_vision_lite.heads.keypoints.disks import DiskOffsets
from big_vision_lite.heads.keypoints.drawing import annotate_poses, draw_poses
from big_vision_lite.heads.keypoints.gaussians import GaussianHeatmaps


@dataclasses.dataclass(frozen=True)
class TopDown(Head):
    """The keypoints of the object in a crop (top-down pose estimation). Needs one example per object (`PerObject`) and
    `ObjectCrop`, whose boxes are annotated or come from a detector.

    The score of a pose is that of its box times the mean score of its keypoints. Raises: UserError for a field out of
    range.
    """

    codec: DiskOffsets | GaussianHeatmaps = DiskOffsets()
    """What the network computes, and how keypoints are read from it."""
    keypoints: KeypointSet = COCO_PERSON
    """Names, sigmas of the metric and limbs of the pictures."""
    flip_test: bool = True
    """Evaluate the mirrored crop too, and average."""
    min_score: float = 0.2
    """Keypoints of a lower score do not count in the score of their pose (Xiao et al.'s code), nor are they drawn."""
    nms_oks: float = 0.9
    """Object keypoint similarity above which the better of two poses in an image suppresses the other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of deconvolutions; heatmaps and losses are float32."""

    def __post_init__(self) -> None:
        if not (0 <= self.min_score <= 1 and 0 <= self.nms_oks <= 1):
            raise UserError(f"TopDown: min_score={self.min_score}, nms_oks={self.nms_oks}; expected numbers from 0 "
                            "to 1")

    def build(self, backbone: BackboneModule, data: DatasetInfo, rngs: nnx.Rngs) -> PoseNet:
        return PoseNet(self, backbone, rngs)

    def targets(self, example: Example) -> dict[str, np.ndarray]:
        """The keypoints in pixels of the crop, and what `ObjectCrop` and `PerObject` say of the box.

        Raises: UserError when an example is not a crop, or has no keypoints or another number of them.
        """
        id_, count = example["id"], len(self.keypoints)
        keypoints = example.get("keypoints")
        if id_ and "matrix" not in example:
            raise UserError(f"image {id_!r} is not a crop around an object; keypoints need the transform ObjectCrop")
        if keypoints is None:
            if id_ and not example.get("unlabelled"):
                raise UserError(f"image {id_!r} has no keypoints; expected a source with them, such as "
                                "CocoJson(..., keypoints=True)")
            keypoints = np.zeros((count, 3), np.float32)
        if len(keypoints) != count:
            raise UserError(f"image {id_!r} has {len(keypoints)} keypoints; expected the {count} of "
                            f"TopDown.keypoints: {', '.join(self.keypoints.names[:3])}, ...")
        return {"keypoints": np.asarray(keypoints, np.float32),
                "matrix": np.asarray(example.get("matrix", np.eye(2, 3)), np.float32),
                "box": np.asarray(example.get("box", np.zeros(4)), np.float32),
                "box_score": np.float32(example.get("box_score", 0.0)),
                "label": np.int32(example["labels"][0] if len(example["labels"]) else 0),
                "image_index": np.int32(example.get("image_index", -1)),
                "object_index": np.int32(example.get("object_index", -1)),
                "key": np.asarray(example.get("key", (0, 0)), np.uint32)}

    def loss(self, model: PoseNet, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        outputs, grid = model(batch["image"], train=True, keys=batch["key"])
        return self.codec.loss(outputs, batch["keypoints"], grid)

    def predict(self, model: PoseNet, batch: Batch) -> dict[str, Array]:
        """"points" ``[b, k, 2]`` in pixels of the crop, "scores" ``[b, k]`` and "loss" ``[b]``."""
        images = batch["image"]
        outputs, grid = model(images, train=False)
        maps = self.codec.maps(outputs)
        if self.flip_test:
            mirrored = self.codec.maps(model(images[:, :, ::-1], train=False)[0])
            turned = self.codec.unmirror(mirrored, self.keypoints.mirror)
            maps = tuple((a + b) / 2 for a, b in zip(maps, turned, strict=True))
        points, scores = self.codec.decode(maps, grid)
        return {"points": points, "scores": scores, "loss": self.codec.loss(outputs, batch["keypoints"], grid)[0]}

    def pose_scores(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> np.ndarray:
        """``[b]``: the score of the box times the mean score of its keypoints."""
        scores = outputs["scores"]
        counted = scores >= self.min_score
        return batch["box_score"] * (scores * counted).sum(1) / np.maximum(counted.sum(1), 1)

    def metrics(self, dataset: Dataset) -> Metrics:
        return TopDownMetrics(self, dataset)

    def check_eval(self, dataset: Dataset) -> None:
        check_keypoints(dataset)

    def main_metric(self, data: DatasetInfo) -> MainMetric:
        return MainMetric("AP")

    def to_json(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """"poses", of one object: "box" ([x1, y1, x2, y2]) and "keypoints" by name, each [x, y, score], in pixels of
        the original image; and "score"."""
        points = to_original(outputs["points"], batch["matrix"])
        return [{"poses": [{
            "box": [round(float(v), 2) for v in box], "score": round(float(score), 6),
            "keypoints": {name: [round(float(x), 2), round(float(y), 2), round(float(s), 6)]
                          for name, (x, y), s in zip(self.keypoints.names, row, scores, strict=True)}}]}
                for box, score, row, scores in zip(batch["box"], self.pose_scores(batch, outputs), points,
                                                   outputs["scores"], strict=True)]

    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        draw_poses(path, batch, outputs, self.keypoints, self.min_score)

    def annotate(self, photo: UInt8[np.ndarray, "h w 3"], prediction: Prediction, classes: tuple[str, ...],
                 score: float | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """Skeletons, of keypoints of at least ``min_score``."""
        poses = [pose for pose in prediction.values["poses"] if score is None or pose["score"] >= score]
        return annotate_poses(photo, poses, self.keypoints, self.min_score)


class PoseNet(nnx.Module):
    """From uint8 crops to the codec's outputs on a grid."""

    def __init__(self, head: TopDown, backbone: BackboneModule, rngs: nnx.Rngs):
        self.backbone = backbone
        self.decoder = head.codec.build(backbone, len(head.keypoints), jnp.dtype(head.dtype), rngs)

    def __call__(self, images: UInt8[Array, "b h w 3"], train: bool,
                 keys: Keys = None) -> tuple[Float[Array, "b gh gw n"], Grid]:
        outputs = self.decoder(self.backbone(images, train, keys)[-1], train)
        return outputs, Grid.of(outputs.shape[1:3], images.shape[1:3], self.decoder.stride)


class TopDownMetrics(Metrics):
    """COCO's metrics of keypoints, and the mean loss."""

    def __init__(self, head: TopDown, dataset: Dataset):
        self.head = head
        self.scores = KeypointMetrics(dataset, head.keypoints, head.nms_oks)
        self.loss, self.images = 0.0, 0

    def add(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
        self.scores.add(to_original(outputs["points"], batch["matrix"]), outputs["scores"],
                        self.head.pose_scores(batch, outputs), batch)
        self.loss += float(outputs["loss"][batch["mask"]].sum(dtype=np.float64))
        self.images += int(batch["mask"].sum())

    def check_results(self) -> None:
        """Raises: UserError when the source does not know COCO's ids of images and categories."""
        self.scores.check_results()

    def write_results(self, path: Path) -> None:
        """COCO's results format: a list of image_id, category_id, keypoints and score."""
        self.scores.write_coco_results(path)

    def result(self) -> dict[str, float | None]:
        """As `KeypointMetrics.result`, with "loss" and "images", the number of crops. With a detector's boxes, whose
        crops have no keypoints, the loss is 0."""
        return {**self.scores.result(), "loss": self.loss / max(self.images, 1), "images": self.images}


def to_original(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """float64 ``[b, k, 2]``: points in pixels of crops to pixels of the original images."""
    matrix = matrix.astype(np.float64)
    return points.astype(np.float64) @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]
