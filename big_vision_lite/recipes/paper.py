"""What the studies in configs/paper/ are made of: the paper's recipes at full scale, and the same tasks in miniature.

Full: the paper's values where they are known (reported, mostly unverified; see `scaling.paper`), with synchronous steps
instead of asynchronous ones. JFT-300M was never public: the large set is Open Images V4 unless another is named.
Mini: generated scenes. Few clean ones with few classes stand in for ImageNet, many noisy ones for JFT-300M.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation.steps import LabelNoise, NestedSubset, curation
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4
from big_vision_lite.heads.head import Head
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.recipes import miniature, pretraining, transfer
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer

Scale = Literal["full", "mini"]
OPEN_IMAGES = 9_011_219
IMAGENET = 1_281_167
MINI_IMAGENET, MINI_LARGE = 2_000, 20_000
"""Scenes in the miniatures of the two pretraining sets."""
MINI_PRECISION = 0.8
"""Share of right labels in the large one, as estimated for JFT-300M."""


def large_set(name: str = "open_images_v4", data_dir: str | None = None) -> tuple[Source, dict[str, Source]]:
    """Training and evaluation sources of a large noisy set, by its TFDS name."""
    if name.startswith("open_images_v4"):
        def source(split: str, confidence: float) -> Tfds:
            return Tfds(name, split, data_dir, label_key="objects_trainable", min_confidence=confidence)

        return source("train", 5), {"validation": source("validation", 10)}
    return Tfds(name, "train[:99%]", data_dir), {"held_out": Tfds(name, "train[99%:]", data_dir)}


def pretrain_large(scale: Scale, *, name: str = "open_images_v4", images: int = OPEN_IMAGES, subset: int | None = None,
                   vocabulary: int | None = None, depth: int | None = None, epochs: float = 4.0,
                   steps: int = 600, exclude: str | None = None, init: str | None = None, seed: int = 0,
                   data_dir: str | None = None) -> Experiment:
    """Pretraining on the large noisy set, from random weights or ``init``.

    Args:
      name, images, epochs, exclude, data_dir: for full scale.
      steps: for mini scale.
    """
    if scale == "full":
        train, evals = large_set(name, data_dir)
        curate = pretraining.curated_by(subset=subset, vocabulary=vocabulary, exclude=exclude)
        experiment = pretraining.jft_pretraining(train, evals, subset or images, curate=curate, depth=depth or 101,
                                                 epochs=epochs, seed=seed)
    else:
        curate = curation(subset=NestedSubset(subset or MINI_LARGE, seed=seed), noise=LabelNoise(MINI_PRECISION))
        experiment = miniature.scenes_pretraining(steps=steps, curate=curate, images=MINI_LARGE, depth=depth or 10,
                                                  seed=seed, classes=vocabulary or miniature.CLASSES, probes=False)
    return dataclasses.replace(experiment, transfer=Transfer(init))


def pretrain_imagenet(scale: Scale, *, depth: int | None = None, seed: int = 0,
                      data_dir: str | None = None) -> Experiment:
    """Pretraining on ImageNet; mini: on few scenes of half the classes, all labels right."""
    if scale == "full":
        return pretraining.imagenet_pretraining(
            Tfds("imagenet2012", "train", data_dir), {"validation": Tfds("imagenet2012", "validation", data_dir)},
            IMAGENET, depth=depth or 101, seed=seed)
    return miniature.scenes_pretraining(
        steps=600, curate=(NestedSubset(MINI_IMAGENET, seed=seed),), images=MINI_IMAGENET, depth=depth or 10, seed=seed,
        classes=miniature.CLASSES // 2, probes=False)


def detection(scale: Scale, init: str | None, data: Literal["coco", "voc07"], *, depth: int | None = None,
              root: str | None = None, minival: str | None = None, freeze: bool = False, seed: int = 0,
              data_dir: str | None = None) -> Experiment:
    """The paper's Faster R-CNN, see `transfer.faster_rcnn`; steps of 9 images: a ninth of COCO's 3 million and VOC's
    590,000, a tenth of the rate after 5/6 (unverified).

    Args:
      root: for VOC, a tree with the images of 2007 and 2012 whose ImageSets/Main has trainval0712.txt and test2007.txt;
        for COCO, the folder of its own files, or None for TFDS's.
      minival: see `transfer.coco`.
      freeze: freeze the backbone.
    """
    metric = "AP" if data == "coco" else "AP50"
    if scale == "mini":
        variant = C4(rpn_channels=64, pre_nms_topk=(500, 500), post_nms_topk=(64, 64), rois_per_image=32,
                     pooler_resolution=6)
        return _miniature(FasterRCNN(variant, max_boxes=16, metric=metric), init, ResizeToFit(64, 64), depth, freeze,
                          seed)
    if data == "coco":
        train, evals = transfer.coco(root, minival, data_dir)
    else:
        train, evals = VocTree(root or "VOC0712", "trainval0712"), {"test": VocTree(root or "VOC0712", "test2007")}
    return transfer.faster_rcnn(
        train, evals, recipe="paper", length=(3_000_000 if data == "coco" else 590_000) // 9, warmup=500,
        drops=(5 / 6,), init=init, depth=depth or 101, freeze=freeze, metric=metric, seed=seed)


def segmentation(scale: Scale, init: str | None, *, root: str | None = None, depth: int | None = None,
                 seed: int = 0) -> Experiment:
    """DeepLab-ASPP-L on VOC 2012's 10,582 images, mIoU on its val: `transfer.deeplab`.

    Args:
      root: a VOC tree with SegmentationClassAug and train_aug.txt.
    """
    if scale == "mini":
        return _miniature(Segmentation(ASPPL(rates=(1, 2, 3, 4)), size=64), init, ScaleJitter(64), depth, False, seed)
    root = root or "VOC2012"
    return transfer.deeplab(VocTree(root, "train_aug", masks="class_aug"), {"val": VocTree(root, "val", masks="class")},
                            recipe="paper", init=init, depth=depth or 101, seed=seed, dtype="bfloat16")


def imagenet_finetuning(scale: Scale, init: str | None, *, depth: int | None = None, seed: int = 0,
                        data_dir: str | None = None) -> Experiment:
    """ImageNet from a pretrained network, all layers. The paper's recipe is unknown, so BiT's HyperRule."""
    if scale == "mini":
        return miniature.scenes_transfer(init, depth=depth or 10, seed=seed, steps=300)
    return transfer.bit_finetuning(
        Tfds("imagenet2012", "train", data_dir), {"validation": Tfds("imagenet2012", "validation", data_dir)}, IMAGENET,
        init=init, pixels=500 * 375, backbone=ResNet(depth or 101, dtype="bfloat16"), seed=seed)


def _miniature(head: Head, init: str | None, transform: ResizeToFit | ScaleJitter, depth: int | None, freeze: bool,
               seed: int) -> Experiment:
    """Scenes of three of the new classes at 64 pixels."""
    def scenes(split: str, images: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, images, size=64, classes=miniature.new_classes(3), objects=(1, 3), zipf=0.0)

    return Experiment(
        train=Input(scenes("train", 1_000), transform, 16),
        evals={"test": Input(scenes("test", 200), ResizeToFit(64, 64, random=False), 16)},
        # From scratch BatchNorm sees the whole batch, which is too small for groups; else it is fixed.
        backbone=dataclasses.replace(miniature.small_resnet(depth or 10), norm=BatchNorm()),
        head=head,
        optimizer=SGD(0.02, schedule=Cosine(warmup=0.1), weight_decay=1e-4, grad_clip_norm=10.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else (), freeze_batchnorm=init is not None),
        steps=300,
        seed=seed,
        log_every=50,
    )
