"""Transfer to keypoints: COCO's persons by G-RMI's recipe or Xiao et al.'s, and emoji scenes in miniature."""

from __future__ import annotations

from typing import Literal

from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.keypoints import EMOJI
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.per_object import PerObject
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.object_crop import ObjectCrop
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.keypoints import DiskOffsets, GaussianHeatmaps, TopDown
from big_vision_lite.heads.segmentation import dilated
from big_vision_lite.training.optimizers import SGD, AdamW, Optimizer
from big_vision_lite.training.schedules import Constant, Cosine, Step
from big_vision_lite.training.transfer import Transfer

PERSONS = 149_813
"""Persons with labelled keypoints in train2017 (from memory, not verified)."""

GRMI_DEVIATIONS = (
    "keypoints: length, batch and rate of G-RMI are from memory (800,000 steps of 24 crops at 0.005)",
    "keypoints: no auxiliary loss at layer 50, and no exclusion of other persons' keypoints in a crop from the loss",
    "keypoints: the decay of the parameters' average (0.9999), the Huber loss's limit (1 pixel) and mirroring are "
    "guesses",
    "keypoints: heatmaps are at stride 8, not upsampled to pixels before the vote; mirrored crops are averaged",
    "keypoints: scores are on val2017, the paper's on test-dev; with annotated boxes unless a detector's are given",
)
"""Of `top_down` with ``recipe="grmi"`` from Papandreou et al.'s pipeline, as the paper took it."""


def coco_persons(root: str, boxes: str | None = None) -> tuple[Source, dict[str, Source]]:
    """COCO 2017 keypoints: the training source, and the evaluation source by the name of its split.

    Args:
      root: folder of COCO's own files (annotations/, train2017/, val2017/).
      boxes: a detector's results for val2017; None: annotated boxes.
    """
    def persons(split: str, boxes: str | None = None) -> PerObject:
        images = CocoJson(f"{root}/annotations/person_keypoints_{split}.json", f"{root}/{split}", keypoints=True)
        return PerObject(images, boxes, classes=("person",))

    return persons("train2017"), {"val2017": persons("val2017", boxes)}


def top_down(train: Source, evals: dict[str, Source], *, recipe: Literal["grmi", "simple"], init: str | None,
             depth: int = 101, batch_size: int | None = None, steps: int | None = None, freeze: bool = False,
             seed: int = 0, dtype: str = "bfloat16") -> Experiment:
    """Keypoints of COCO's persons from a pretrained backbone.

    grmi: Papandreou et al. 2017, whose pipeline the paper takes. Crops of 353 x 257 pixels, 1 to 1.5 times the box
    (1.25 in evaluation), output stride 8, disks of radius 25 and offsets; SGD with momentum 0.9 at the constant rate
    0.005, 800,000 steps of 24 crops, moving average of the parameters. Length, batch and rate are from memory. Its
    auxiliary loss at layer 50 and the exclusion of other persons' keypoints in a crop from the loss are left out; the
    decay of the average (0.9999) and mirroring are guesses.
    simple: Xiao et al. 2018. Crops of 256 x 192, output stride 4 by three deconvolutions, Gaussians of 2 cells; Adam at
    1e-3 for 128 crops, a tenth after 90 and 120 of 140 epochs (from memory). Scale and angle are uniform, not normal.

    Args:
      depth: of the backbone, if ``init`` is not a run.
      batch_size: None: the recipe's. The rate grows linearly with it, and the steps fall.
      steps: None: the recipe's.
      freeze: train only the head.
    """
    usual_batch = 24 if recipe == "grmi" else 128
    scale = (batch_size or usual_batch) / usual_batch
    backbone: Backbone = whole_batch(backbone_of(init) or ResNet(depth, dtype=dtype))
    if recipe == "grmi":
        crop, view = ObjectCrop((353, 257), 1.0, (1.0, 1.5)), ObjectCrop((353, 257), random=False)
        head, backbone, length = TopDown(DiskOffsets()), dilated(backbone, 8), 800_000
        optimizer: Optimizer = SGD(0.005 * scale, Constant(), weight_decay=1e-4)
    else:
        crop, view = ObjectCrop((256, 192), rotation=40.0), ObjectCrop((256, 192), random=False)
        head, length = TopDown(GaussianHeatmaps(), dtype=dtype), 140 * PERSONS // usual_batch
        optimizer = AdamW(1e-3 * scale, Step(at=(90 / 140, 120 / 140)), weight_decay=0.0)
    return Experiment(
        train=Input(train, crop, batch_size or usual_batch, on_bad_image="mask"),
        evals={name: Input(source, view, batch_size or usual_batch, on_bad_image="mask")
               for name, source in evals.items()},
        backbone=backbone,
        head=head,
        optimizer=optimizer,
        ema=0.9999 if recipe == "grmi" else None,
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=max(1, round(length / scale)) if steps is None else steps,
        seed=seed,
        log_every=50,
        eval_every=1 / 7,
    )


def emoji_top_down(*, init: str | None, images: int = 2_000, eval_images: int = 300,
                   classes: int | tuple[str, ...] = 20,
                   style: str = "openmoji", size: int = 96, steps: int = 600, batch_size: int = 32,
                   freeze: bool = False, backbone: Backbone | None = None, seed: int = 0) -> Experiment:
    """Keypoints of generated scenes by disks and offsets, in crops of 64 pixels.

    Args:
      images, eval_images: scenes, of which each object is learned or scored.
      classes: names, or how many of the most frequent ones.
      backbone: None: that of the run ``init``, else that of configs/pretrain/emoji.py.
      freeze: train only the head.
    """
    def objects(split: str, count: int) -> PerObject:
        return PerObject(PreparedEmojiScenes(split, count, size=size, style=style, classes=classes, objects=(1, 4),
                                             zipf=0.5, keypoints=True))

    return Experiment(
        train=Input(objects("train", images), ObjectCrop(64, scale=(0.8, 1.2), rotation=15.0), batch_size),
        evals={"test": Input(objects("test", eval_images), ObjectCrop(64, random=False), batch_size)},
        # Batches are too small for groups: BatchNorm uses the whole batch.
        backbone=dilated(whole_batch(backbone or backbone_of(init) or ResNet(10, width=0.5)), 8),
        head=TopDown(DiskOffsets(radius=10.0), EMOJI),
        optimizer=AdamW(1e-3, Cosine(warmup=0.05), weight_decay=0.02, grad_clip_norm=10.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
