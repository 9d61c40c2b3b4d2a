"""Every recipe in configs/ builds and takes two steps on a tiny generated set."""

import dataclasses
import json
from pathlib import Path

import pytest

from big_vision_lite import config
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.joint_transforms import Fit, ScaleJitter
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import ResizeCrop, Squash
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.heads.head import Head
from big_vision_lite.heads.segmentation import Segmentation
from big_vision_lite.training.job import Job
from big_vision_lite.training.loop import train
from big_vision_lite.training.records import read_metrics

CONFIGS = Path(__file__).parent.parent / "configs"
ARGUMENTS = {
    "image_folder.py": ":root=/photos,size=32",
    "tfds.py": ":name=cifar10,size=32",
    "pretrain/jft300m_like.py": ":name=photos,subset=1000000,precision=0.8,vocabulary=1000,exclude=/ids.txt",
    "pretrain/imagenet21k.py": ":path=/tars,hierarchy=/hierarchy.csv",
    "pretrain/imagenet1k.py": ":v2=true",
    "transfer/folder.py": ":root=/photos,images=1000,freeze=true",
    "transfer/tfds.py": ":name=cifar10,subset=5000",
    "transfer/vtab.py": ":task=dtd",
    "transfer/small_photos.py": ":root=/photos,images=500",
    "transfer/bccd_detection.py": ":root=/bccd",
    "transfer/coco_detection.py": ":root=/coco",
    "transfer/voc07_detection.py": ":root=/voc,recipe=c4",
    "transfer/voc12_segmentation.py": ":root=/voc",
    "transfer/folder_segmentation.py": ":root=/photos",
    "transfer/coco_check_detection.py": ":root=/coco",
    "transfer/coco_check_segmentation.py": ":root=/coco,images=100",
}
"""What a recipe needs to be told."""
SAME_AS_ANOTHER = (
    "pretrain/open_images.py", "pretrain/imagenet21k.py", "pretrain/emoji.py", "tfds.py", "transfer/tfds.py",
    "transfer/pets.py", "transfer/flowers.py", "transfer/vtab.py", "transfer/small_photos.py",
    "transfer/bccd_detection.py", "transfer/coco_detection.py", "transfer/voc07_detection.py",
    "transfer/voc12_segmentation.py", "transfer/folder_segmentation.py", "transfer/emoji_segmentation.py",
    "transfer/coco_check_detection.py", "transfer/coco_check_segmentation.py")
"""Differ from another, or from what the tests of heads train, in the source or in sizes alone, which are replaced here:
compiling them again would tell nothing."""


def tiny(inputs: Input, kind: str) -> Input:
    scenes = EmojiScenes("train", 24, size=32, classes=6, objects=(1, 1) if kind == "softmax" else (1, 3))
    transform = inputs.transform
    if isinstance(transform, ResizeCrop):
        transform = dataclasses.replace(transform, resize=40, size=32)
    if isinstance(transform, Squash):
        transform = Squash(40)
    if isinstance(transform, Fit):
        transform = dataclasses.replace(transform, short=32, long=32, buckets=((32, 32),))
    if isinstance(transform, ScaleJitter):
        transform = dataclasses.replace(transform, size=32)
    return dataclasses.replace(inputs, source=scenes, transform=transform, batch_size=8, curate=())


def small_head(head: Head) -> Head:
    if isinstance(head, FasterRCNN) and isinstance(head.variant, FPN):
        variant = dataclasses.replace(head.variant, channels=16, width=16, candidates=(50, 50), proposals=(16, 16),
                                      rois=8)
        return dataclasses.replace(head, variant=variant)
    if isinstance(head, Segmentation):
        return dataclasses.replace(head, size=32)
    return dataclasses.replace(head, ten_crop=32) if getattr(head, "ten_crop", None) else head


RECIPES = [path for path in sorted(CONFIGS.rglob("*.py")) if "def get_config" in path.read_text()]
"""Not the studies, which are tested where studies are."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_config_takes_two_steps(path, tmp_path):
    experiment = config.load(str(path) + ARGUMENTS.get(str(path.relative_to(CONFIGS)), ""))
    assert config.from_json(config.to_json(experiment)) == experiment
    kind = getattr(experiment.head, "loss_kind", "boxes")
    backbone = dataclasses.replace(experiment.backbone, depth=10, width=1 / 16,
                                   norm=dataclasses.replace(experiment.backbone.norm, group=None))
    optimizer = dataclasses.replace(
        experiment.optimizer, schedule=dataclasses.replace(experiment.optimizer.schedule, warmup=0))
    small = dataclasses.replace(
        experiment, train=tiny(experiment.train, kind), backbone=backbone, probes={},
        head=small_head(experiment.head), optimizer=optimizer, steps=2,
        evals={name: tiny(inputs, kind) for name, inputs in experiment.evals.items()}, log_every=1, eval_every=None)
    if str(path.relative_to(CONFIGS)) in SAME_AS_ANOTHER:
        job = Job(small)
        batch = next(job.batches(small.train, job.data, seed=0, stop=1))
        assert batch["image"].shape == (8, *small.train.transform.shape) and batch["mask"].all()
        return
    results = train(small, tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 2]
    assert all(results[f"{name}/images"] == 24 for name in experiment.evals)
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", [path for path in RECIPES if "init: str" in path.read_text()],
                         ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_pretrained_backbone_fits_each_recipes_batch(path, tmp_path):
    """Its BatchNorm may have learned in groups that do not divide the batch of what it is transferred to."""
    run = config.load(str(CONFIGS / 'pretrain/emoji.py'))
    pretrained = run.backbone
    assert pretrained.norm.group == 32
    (tmp_path / "config.json").write_text(json.dumps(config.to_json(run)))
    arguments = ARGUMENTS.get(str(path.relative_to(CONFIGS)), "")
    experiment = config.load(f"{path}{arguments or ':'}{',' if arguments else ''}init={tmp_path}")
    group = experiment.backbone.norm.group
    assert group is None or experiment.train.batch_size % group == 0
    assert dataclasses.replace(experiment.backbone, norm=pretrained.norm, output_stride=32) == pretrained
