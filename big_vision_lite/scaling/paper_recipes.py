"""The paper's recipes at full size, and the same tasks in small: what the studies in configs/paper/ are made of.

Full: figures are the paper's where they are known (reported, mostly unverified; see `paper`), with synchronous steps
instead of asynchronous ones. JFT-300M was never public: the large set is Open Images V4 unless another is named.
Mini: generated scenes; few clean ones with few classes play ImageNet, many noisy ones JFT-300M.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from big_vision_lite import recipes
from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation import Curation, LabelNoise, NestedSubset, curation
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.joint_transforms import Fit, ScaleJitter
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.scaling import recipes as mini
from big_vision_lite.scaling.study import OF_A_RUN, Factor, Run
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer

Scale = Literal["full", "mini"]
OPEN_IMAGES = 9_011_219
IMAGENET = 1_281_167
MINI_IMAGENET, MINI_LARGE = 2_000, 20_000
"""Scenes of the two small pretraining sets."""
MINI_PRECISION = 0.8
"""Share of right labels in the large one, as estimated for JFT-300M."""


def large_set(name: str = "open_images_v4", data_dir: str | None = None) -> tuple[Source, dict[str, Source]]:
    """A large noisy set by its TFDS name, and what its pretraining is scored on."""
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
      images, name, epochs, exclude, data_dir: for full scale.
      steps: for mini scale.
    """
    if scale == "full":
        train, evals = large_set(name, data_dir)
        curate = recipes.curated_by(subset=subset, vocabulary=vocabulary, exclude=exclude)
        experiment = recipes.jft_pretraining(train, evals, subset or images, curate=curate, depth=depth or 101,
                                             epochs=epochs, seed=seed)
    else:
        curate = curation(subset=NestedSubset(subset or MINI_LARGE, seed=seed), noise=LabelNoise(MINI_PRECISION))
        experiment = mini.scenes_pretraining(steps=steps, curate=curate, scenes=MINI_LARGE, depth=depth or 10,
                                             seed=seed, classes=vocabulary or mini.CLASSES, probes=False)
    return dataclasses.replace(experiment, transfer=Transfer(init))


def pretrain_imagenet(scale: Scale, *, depth: int | None = None, seed: int = 0,
                      data_dir: str | None = None) -> Experiment:
    """Pretraining on ImageNet; mini: on few scenes of half the classes, all labels right."""
    if scale == "full":
        return recipes.imagenet_pretraining(
            Tfds("imagenet2012", "train", data_dir), {"validation": Tfds("imagenet2012", "validation", data_dir)},
            IMAGENET, depth=depth or 101, seed=seed)
    curate: tuple[Curation, ...] = (NestedSubset(MINI_IMAGENET, seed=seed),)
    return mini.scenes_pretraining(steps=600, curate=curate, scenes=MINI_IMAGENET, depth=depth or 10, seed=seed,
                                   classes=mini.CLASSES // 2, probes=False)


def detection(scale: Scale, init: str | None, data: Literal["coco", "voc07"], *, depth: int | None = None,
              root: str | None = None, minival: str | None = None, freeze: bool = False, seed: int = 0,
              data_dir: str | None = None) -> Experiment:
    """Faster R-CNN with C4 features: short side 600, 300 proposals, 256 anchors and 64 boxes an image, NMS at 0.6,
    BatchNorm fixed (Huang et al. 2017), momentum 0.9; COCO 3M steps of 9 workers' single images at rate 4e-4, VOC 590K
    at 3e-4, a tenth after 5/6 (unverified). Here synchronous: batches of 9 images, a ninth of the steps, 9 times the
    rate.

    Args:
      root: for VOC, a tree with the images of 2007 and 2012 whose ImageSets/Main has trainval0712.txt and test2007.txt;
        for COCO, the folder of its own files, or None for TFDS's.
      minival: as of `recipes.coco`.
      freeze: the layers before the detector's own stay as they were.
    """
    from big_vision_lite.data.voc_tree import VocTree

    head = FasterRCNN(C4(), nms=0.6, metric="AP" if data == "coco" else "AP50")
    if scale == "mini":
        return _mini(FasterRCNN(C4(rpn_channels=64, candidates=(500, 500), proposals=(64, 64), rois=32, pool=6),
                                max_boxes=16, metric=head.metric), init, Fit(64, 64), depth, freeze, seed, steps=300)
    if data == "coco":
        train, evals = recipes.coco(root, minival, data_dir)
    else:
        train, evals = VocTree(root or "VOC0712", "trainval0712"), {"test": VocTree(root or "VOC0712", "test2007")}
    return recipes.faster_rcnn(train, evals, recipe="paper", batch_size=9, init=init, depth=depth or 101,
                               steps=(3_000_000 if data == "coco" else 590_000) // 9, drops=(5 / 6,), warmup=500,
                               freeze=freeze, metric=head.metric, seed=seed)


def segmentation(scale: Scale, init: str | None, *, root: str = "VOC2012", depth: int | None = None, seed: int = 0,
                 freeze: bool = False) -> Experiment:
    """DeepLab-ASPP-L on VOC 2012's 10,582 images, mIoU on its val: `recipes.deeplab`.

    Args:
      root: a VOC tree with SegmentationClassAug and train_aug.txt.
    """
    from big_vision_lite.data.voc_tree import VocTree

    if scale == "mini":
        return _mini(Segmentation(ASPPL(rates=(1, 2, 3, 4)), size=64), init, ScaleJitter(64), depth, freeze, seed,
                     steps=300)
    return recipes.deeplab(VocTree(root, "train_aug", masks="class_aug"), {"val": VocTree(root, "val", masks="class")},
                           recipe="paper", init=init, depth=depth or 101, freeze=freeze, seed=seed, dtype="bfloat16")


def imagenet_finetuning(scale: Scale, init: str | None, *, depth: int | None = None, seed: int = 0,
                        data_dir: str | None = None) -> Experiment:
    """ImageNet from a pretrained network, all layers: how the paper did so is unknown, so BiT's HyperRule."""
    if scale == "mini":
        return mini.scenes_transfer(init, depth=depth or 10, seed=seed, steps=300)
    return recipes.bit_finetuning(
        Tfds("imagenet2012", "train", data_dir), {"validation": Tfds("imagenet2012", "validation", data_dir)}, IMAGENET,
        init=init, pixels=500 * 375, backbone=ResNet(depth or 101, dtype="bfloat16"), seed=seed)


def _frozen(freeze: bool) -> tuple[str, ...]:
    return ("backbone",) if freeze else ()


def _mini(head: Any, init: str | None, view: Any, depth: int | None, freeze: bool, seed: int, *,
          steps: int) -> Experiment:
    """Scenes of three of the new classes at 64 pixels."""
    def scenes(split: str, images: int) -> EmojiScenes:
        return EmojiScenes(split, images, size=64, classes=mini.new_classes(3), objects=(1, 3), zipf=0.0, prepared=True)

    return Experiment(
        train=Input(scenes("train", 1_000), view, 16),
        evals={"test": Input(scenes("test", 200), Fit(64, 64, random=False), 16)},
        backbone=dataclasses.replace(mini.small_resnet(depth or 10), norm=BatchNorm()),  # fixed, or of small batches
        head=head,
        optimizer=SGD(0.02, schedule=Cosine(warmup=steps // 10), weight_decay=1e-4, clip=10.0),
        transfer=Transfer(init, freeze=_frozen(freeze), freeze_statistics=init is not None),
        steps=steps,
        seed=seed,
        log_every=50,
    )


def pretrainings(scale: Scale, seed: int = 0, **large: Any) -> dict[str, Run]:
    """The three networks that the paper transfers, by the names of its tables: ImageNet, the large set, and one after
    the other.

    Args:
      large: arguments of `pretrain_large`.
    """
    first = Run(f"imagenet,seed={seed}", pretrain_imagenet(scale, seed=seed, data_dir=large.get("data_dir")))
    both = pretrain_large(scale, seed=seed, init=OF_A_RUN + first.name, **large)
    return {"ImageNet": first, "300M": Run(f"large,seed={seed}", pretrain_large(scale, seed=seed, **large)),
            "ImageNet+300M": Run(f"imagenet+large,seed={seed}", both)}


def placed(table: str, row: str, scale: Scale, **more: Factor) -> dict[str, Factor]:
    """Factors that put a run into a row of a table of `paper`."""
    return {"table": table, "row": row, "scale": scale, **more}
