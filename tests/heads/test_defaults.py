"""Defaults: what every config trains that leaves a field out. The documentation of each field names its source."""

import pytest

from big_vision_lite.backbones.norm import BatchNorm, GroupNorm
from big_vision_lite.data.keypoints import COCO_PERSON
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4, FPN
from big_vision_lite.heads.keypoints import DiskOffsets, GaussianHeatmaps, TopDown
from big_vision_lite.heads.segmentation import ASPPL, DeepLabV3, DeepLabV3Plus, Segmentation
from big_vision_lite.heads.self_supervised import BYOL, SimCLR

DEEPLAB = {"rates": (6, 12, 18), "channels": 256, "image_pooling": True, "dropout": 0.1,
           "norm": BatchNorm(None, 0.9, 1e-5)}


@pytest.mark.parametrize(("config", "expected"), [
    (Classification(), {"loss_kind": "sigmoid", "max_labels": 16, "label_smoothing": 0.0, "prior": None, "mixup": 0.0,
                        "ten_crop": None, "soft_labels": False, "hierarchy": None}),
    (C4(), {"rpn_channels": 512, "anchor_sizes": None, "pre_nms_topk": (6000, 6000), "post_nms_topk": (300, 300),
            "rois_per_image": 64, "pooler_resolution": 14, "aligned": True, "dtype": "float32"}),
    (FPN(), {"channels": 256, "width": 1024, "anchor_sizes": None, "pre_nms_topk": (2000, 1000),
             "post_nms_topk": (1000, 1000), "rois_per_image": 512, "pooler_resolution": 7, "aligned": True,
             "dtype": "float32"}),
    (FasterRCNN(), {"variant": C4(), "aspect_ratios": (0.5, 1.0, 2.0), "rpn_iou": (0.3, 0.7), "rpn_samples": 256,
                    "rpn_positives": 0.5, "rpn_nms": 0.7, "roi_iou": 0.5, "roi_positives": 0.25, "beta": 0.0,
                    "box_weight": 1.0, "score_threshold": 0.05, "nms_iou": 0.5, "pre_nms_topk": 2000,
                    "max_detections": 100, "max_boxes": 100, "difficult": "train", "metric": "AP"}),
    (Segmentation(), {"decoder": DeepLabV3(), "size": 513, "auxiliary": 0.0, "ohem_fraction": 1.0, "scales": (1.0,),
                      "flip": False, "score_at": "original", "boundary": None, "dtype": "float32"}),
    (SimCLR(), {"hidden": 2048, "size": 128, "temperature": 0.1}),
    (BYOL(), {"hidden": 4096, "size": 256, "momentum": 0.99}),
    (TopDown(), {"codec": DiskOffsets(), "keypoints": COCO_PERSON, "flip_test": True, "min_score": 0.2, "nms_oks": 0.9,
                 "dtype": "float32"}),
    (DiskOffsets(), {"radius": 25.0, "heatmap_weight": 4.0, "offset_weight": 1.0, "huber": 1.0}),
    (GaussianHeatmaps(), {"deconvolutions": 3, "channels": 256, "sigma": 2.0, "norm": BatchNorm(None, 0.9, 1e-5)}),
    (ASPPL(), {"rates": (6, 12, 18, 24)}), (DeepLabV3(), DEEPLAB),
    (DeepLabV3Plus(), {**DEEPLAB, "low_level_channels": 48}), (GroupNorm(), {"groups": 32, "epsilon": 1e-5}),
], ids=lambda value: type(value).__name__)
def test_defaults(config, expected):
    assert vars(config) == expected
