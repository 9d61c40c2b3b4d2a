"""Each head on a backbone that implements exactly the declared interface; and the main metric."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from toy_backbone import Toy

from big_vision_lite.data.keypoints import EMOJI
from big_vision_lite.data.source import SavedDatasetInfo
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4, FPN
from big_vision_lite.heads.head import MainMetric
from big_vision_lite.heads.keypoints import DiskOffsets, GaussianHeatmaps, TopDown
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation
from big_vision_lite.training.step import TrainStep, split
from big_vision_lite.training.trees import flatten

DATA = SavedDatasetInfo(("a", "b"), True, "", 1, "")
SIDE = 64


def batch_of(head, count=2):
    rng, targets = np.random.default_rng(0), []
    for i in range(count):
        corner = rng.uniform(0, SIDE / 2, (3, 2))
        targets.append(head.targets({
            "id": f"{i}", "labels": np.array([0, 1], np.int32), "key": rng.integers(0, 2**32, 2, np.uint32),
            "boxes": np.concatenate([corner, corner + rng.uniform(8, SIDE / 2, (3, 2))], 1).astype(np.float32),
            "box_labels": rng.integers(0, 2, 3).astype(np.int32), "size": np.full(2, SIDE, np.int32),
            "matrix": np.eye(2, 3), "keypoints": np.concatenate([rng.uniform(0, SIDE, (4, 2)), np.full((4, 1), 2)], 1),
            "class_mask": rng.integers(0, 3, (SIDE, SIDE)).astype(np.uint8),
            "original_size": np.full(2, SIDE, np.int32), "scale": np.ones(2, np.float32)}))
    return {"image": rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8), "mask": np.ones(count, bool),
            **{key: np.stack([t[key] for t in targets]) for key in targets[0]}}


@pytest.mark.parametrize("head", [
    FasterRCNN(C4(8, pre_nms_topk=(20, 20), post_nms_topk=(9, 9), rois_per_image=8, pooler_resolution=4), max_boxes=3),
    FasterRCNN(FPN(8, 8, pre_nms_topk=(20, 20), post_nms_topk=(9, 9), rois_per_image=8), max_boxes=3),
    Segmentation(DeepLabV3Plus((1, 2), 8, low_level_channels=4), size=SIDE), Classification(),
    TopDown(DiskOffsets(16.0), EMOJI), TopDown(GaussianHeatmaps(2, 8), EMOJI),
], ids=lambda head: type(getattr(head, "variant", head)).__name__)
def test_it_trains(head):
    graphdef, *arrays = split(head.build(Toy().build(nnx.Rngs(0)), DATA, nnx.Rngs(1)))
    steps = TrainStep(graphdef, head, optax.sgd(0.01))
    state = steps.init(*arrays)
    train_step, batch = jax.jit(steps.train_step), batch_of(head)
    for _ in range(2):
        state, metrics = train_step(state, batch)
        assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    before, after = flatten(arrays[0]), flatten(state.params)
    moved = {name for name in before if "backbone" in name and (before[name] != after[name]).any()}
    assert {name for name in moved if "kernel" in name} == {f"backbone.stages.{i}.kernel" for i in range(4)}


def test_the_main_metric_has_a_name_a_direction_and_a_unit():
    assert MainMetric("r2").to_json() == {"name": "r2", "direction": "higher", "unit": ""}
    assert MainMetric("rmse", False, "px").to_json() == {"name": "rmse", "direction": "lower", "unit": "px"}
    single = SavedDatasetInfo(("a", "b"), False, "", 1, "")
    for head, data, name in ((Classification(), DATA, "mAP"), (Classification(), single, "top1"),
                             (FasterRCNN(metric="AP50"), DATA, "AP50"), (Segmentation(), DATA, "mIoU"),
                             (TopDown(), DATA, "AP")):
        assert head.main_metric(data) == MainMetric(name)
