"""The paper's recipes at full scale, of which the studies in configs/paper/ are made.

They have the paper's values where these are known (reported, mostly unverified; see `scaling.paper`), with synchronous
steps instead of asynchronous ones. JFT-300M was never public: the large set is Open Images V4 unless another is named.
`recipes.paper_mini` has the same tasks in miniature.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import pretraining, transfer
from big_vision_lite.recipes.paper_mini import Labels
from big_vision_lite.training.transfer import Transfer

Scale = Literal["full", "mini"]
OPEN_IMAGES = 9_011_219
IMAGENET = 1_281_167
MATCHING_CLASSES = 941
"""Classes of JFT-300M that match ImageNet's (reported, unverified)."""


@dataclasses.dataclass(frozen=True)
class Full:
    """The recipes of configs/paper at ``scale=full``.

    Attributes:
      name: TFDS name of the large set.
      images: size of its train split.
      root: files of the transfer's data, see `detection` and `segmentation`.
      minival: see `transfer.coco`.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
    """

    name: str = "open_images_v4"
    images: int = OPEN_IMAGES
    root: str | None = None
    minival: str | None = None
    data_dir: str | None = None

    def depth(self, paper_depth: int) -> int:
        """The paper's own."""
        return paper_depth

    def large_set(self) -> tuple[Source, dict[str, Source]]:
        """Training and evaluation sources of the large set."""
        if self.name.startswith("open_images_v4"):
            def source(split: str, confidence: float) -> Tfds:
                return Tfds(self.name, split, self.data_dir, label_key="objects_trainable", min_confidence=confidence)

            return source("train", 5), {"validation": source("validation", 10)}
        train, held_out = (Tfds(self.name, split, self.data_dir) for split in ("train[:99%]", "train[99%:]"))
        return train, {"held_out": held_out}

    def pretrain_large(self, *, part: float = 1.0, length: float = 1.0, labels: Labels = "all", init: str | None = None,
                       depth: int | None = None, seed: int = 0, exclude: str | None = None) -> Experiment:
        """The large set, from random weights or ``init``.

        Args:
          part: share of its images, nested.
          length: share of the full number of steps.
          labels: see `Labels`.
          exclude: file of image ids to leave out.
        """
        train, evals = self.large_set()
        curate = pretraining.curated_by(subset=round(part * self.images) if part < 1 else None, exclude=exclude,
                                        vocabulary=MATCHING_CLASSES if labels == "imagenets" else None)
        experiment = pretraining.jft_pretraining(train, evals, self.images, curate=curate, depth=depth or 101,
                                                 epochs=4.0 * length, seed=seed)
        return dataclasses.replace(experiment, transfer=Transfer(init))

    def pretrain_imagenet(self, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """ImageNet, from random weights."""
        return pretraining.imagenet_pretraining(
            Tfds("imagenet2012", "train", self.data_dir),
            {"validation": Tfds("imagenet2012", "validation", self.data_dir)}, IMAGENET, depth=depth or 101, seed=seed)

    def imagenet_finetuning(self, init: str | None, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """ImageNet from a pretrained network, all layers. The paper's recipe is unknown, so BiT's HyperRule."""
        if init is None:
            return self.pretrain_imagenet(depth=depth, seed=seed)
        return transfer.bit_finetuning(
            Tfds("imagenet2012", "train", self.data_dir),
            {"validation": Tfds("imagenet2012", "validation", self.data_dir)}, IMAGENET,
            init=init, pixels=500 * 375, backbone=ResNet(depth or 101, dtype="bfloat16"), seed=seed)

    def detection(self, init: str | None, data: Literal["coco", "voc07"], *, depth: int | None = None,
                  freeze: bool = False, seed: int = 0) -> Experiment:
        """The paper's Faster R-CNN, see `transfer.faster_rcnn`; steps of 9 images: a ninth of COCO's 3 million and
        VOC's 590,000, a tenth of the rate after 5/6 (unverified).

        ``root`` is, for VOC, a tree with the images of 2007 and 2012 whose ImageSets/Main has trainval0712.txt and
        test2007.txt; for COCO, the folder of its own files, or None for TFDS's.
        """
        if data == "coco":
            train, evals = transfer.coco(self.root, self.minival, self.data_dir)
        else:
            root = self.root or "VOC0712"
            train, evals = VocTree(root, "trainval0712"), {"test": VocTree(root, "test2007")}
        return transfer.faster_rcnn(
            train, evals, recipe="paper", length=(3_000_000 if data == "coco" else 590_000) // 9, warmup=500,
            drops=(5 / 6,), init=init, depth=depth or 101, freeze=freeze, metric="AP" if data == "coco" else "AP50",
            seed=seed)

    def segmentation(self, init: str | None, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """DeepLab-ASPP-L on VOC 2012's 10,582 images, mIoU on its val: `transfer.deeplab`. ``root`` is a VOC tree with
        SegmentationClassAug and train_aug.txt."""
        root = self.root or "VOC2012"
        return transfer.deeplab(VocTree(root, "train_aug", masks="class_aug"),
                                {"val": VocTree(root, "val", masks="class")}, recipe="paper", init=init,
                                depth=depth or 101, seed=seed, dtype="bfloat16")
