"""Every config builds and takes two steps on a tiny generated set."""

import dataclasses

import pytest
from config_arguments import CONFIGS, REQUIRED

from big_vision_lite import config
from big_vision_lite.data.keypoints import EMOJI
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.per_object import PerObject
from big_vision_lite.data.transforms.image import Resize, ResizeCrop
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.data.transforms.object_crop import ObjectCrop
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.heads.head import Head
from big_vision_lite.heads.keypoints import TopDown
from big_vision_lite.heads.segmentation import Segmentation
from big_vision_lite.training.loop import train
from big_vision_lite.training.metrics import read_metrics
from big_vision_lite.training.trainer import Trainer

SAME_AS_ANOTHER = (
    "pretrain/open_images.py", "pretrain/imagenet21k.py", "pretrain/emoji.py", "tfds.py", "transfer/vtab.py",
    "transfer/small_photos.py", "transfer/bccd_detection.py", "transfer/coco_detection.py",
    "transfer/voc07_detection.py", "transfer/voc12_segmentation.py", "transfer/folder_segmentation.py",
    "transfer/emoji_segmentation.py", "transfer/coco_keypoints.py", "transfer/coco_check_detection.py",
    "transfer/coco_check_segmentation.py")
"""Configs that differ from others, or from what the tests of heads train, only in the source and in sizes, which are
replaced here: compiling them again would show nothing new."""


def tiny(inputs: Input, kind: str) -> Input:
    scenes = EmojiScenes("train", 24, size=32, classes=6, objects=(1, 1) if kind == "softmax" else (1, 3))
    transform = inputs.transform
    if isinstance(transform, ObjectCrop):
        scenes = PerObject(dataclasses.replace(scenes, keypoints=True))
        transform = dataclasses.replace(transform, size=32)
    if isinstance(transform, ResizeCrop):
        transform = dataclasses.replace(transform, resize=40, size=32)
    if isinstance(transform, Resize):
        transform = Resize(40)
    if isinstance(transform, ResizeToFit):
        transform = dataclasses.replace(transform, min_size=32, max_size=32, buckets=((32, 32),))
    if isinstance(transform, ScaleJitter):
        transform = dataclasses.replace(transform, size=32)
    return dataclasses.replace(inputs, source=scenes, transform=transform, batch_size=8, curate=())


def small_head(head: Head) -> Head:
    if isinstance(head, FasterRCNN) and isinstance(head.variant, FPN):
        variant = dataclasses.replace(head.variant, channels=16, width=16, pre_nms_topk=(50, 50),
                                      post_nms_topk=(16, 16), rois_per_image=8)
        return dataclasses.replace(head, variant=variant)
    if isinstance(head, Segmentation):
        return dataclasses.replace(head, size=32)
    if isinstance(head, TopDown):
        return dataclasses.replace(head, keypoints=EMOJI)
    return dataclasses.replace(head, ten_crop=32) if getattr(head, "ten_crop", None) else head


def load(path: str, *arguments: str) -> Experiment:
    return config.load(f"{CONFIGS}/{path}:{','.join(filter(None, (REQUIRED.get(path), *arguments)))}")


TEXTS = {str(path.relative_to(CONFIGS)): path.read_text() for path in sorted(CONFIGS.rglob("*.py"))}


@pytest.mark.parametrize("path", [path for path, text in TEXTS.items() if "def get_config" in text])
def test_config_takes_two_steps(path, tmp_path):
    experiment = load(path)
    assert config.from_json(config.to_json(experiment)) == experiment
    kind = getattr(experiment.head, "loss_kind", "boxes")
    backbone = dataclasses.replace(experiment.backbone, depth=10, width=1 / 16,
                                   norm=dataclasses.replace(experiment.backbone.norm, group=None))
    small = dataclasses.replace(
        experiment, train=tiny(experiment.train, kind), backbone=backbone, probes={}, head=small_head(experiment.head),
        steps=2, evals={name: tiny(inputs, kind) for name, inputs in experiment.evals.items()}, log_every=1,
        eval_every=0.7)  # a share: every step of two
    if path in SAME_AS_ANOTHER:
        trainer = Trainer(small)
        batch = next(trainer.batches(small.train, trainer.data, seed=0, stop=1))
        assert batch["image"].shape == (8, *small.train.transform.shape) and batch["mask"].all()
        return
    results = train(small, tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 1, 2, 2]
    assert all(results[f"{name}/images"] == len(inputs.open()) >= 24 for name, inputs in small.evals.items())
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", [path for path, text in TEXTS.items()
                                  if "init: str" in text and "def get_config" in text])
def test_a_pretrained_backbone_fits_each_recipes_batch(path, tmp_path):
    """Its BatchNorm may have learned in groups that do not divide the batch of the transfer."""
    run = load("pretrain/emoji.py")
    pretrained = run.backbone
    assert pretrained.norm.group == 32
    (tmp_path / "config.json").write_text(config.dumps(run))
    experiment = load(path, f"init={tmp_path}")
    group = experiment.backbone.norm.group
    assert group is None or experiment.train.batch_size % group == 0
    assert dataclasses.replace(experiment.backbone, norm=pretrained.norm, output_stride=32) == pretrained
