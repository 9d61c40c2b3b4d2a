"""The paper's recipes at full scale, of which the studies in configs/paper/ are made.

They have the paper's values where these are known (reported, mostly unverified; see `scaling.paper`); `DEVIATIONS` has
the rest. JFT-300M was never public: the large set is Open Images V7 unless another is named.
`recipes.paper_mini` has the same tasks in miniature.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from big_vision_lite.data.curation.steps import (
    AncestorLabels,
    ClassSubset,
    Curation,
    Exclude,
    ImagesWith,
    NestedSubset,
)
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import pretraining, transfer
from big_vision_lite.recipes.paper_mini import Labels
from big_vision_lite.training.transfer import Transfer

Scale = Literal["full", "mini"]
BATCH = 1024
COCO_STEPS, VOC07_STEPS = 3_000_000, 590_000
"""Of nine workers, each with one image (reported, unverified)."""

DEVIATIONS = (
    ("large set", "JFT-300M: 300 million images, 18,291 classes, 1.26 noisy labels per image",
     "Open Images V7: 9.0 million, 8.8 machine labels per image; or a set of your own", "JFT-300M was never public"),
    ("length on the large set", "36 million steps of 32 images: 3.8 passes",
     "as many images seen: 128 passes over Open Images", "equal compute, 7.2 times that of ImageNet; a smaller set is "
     "then repeated"),
    ("gradients", "asynchronous: 50 workers with 32 images each", "synchronous steps of 1,024 images",
     "asynchronous training is neither reproducible nor made for today's hardware"),
    ("BatchNorm", "statistics of a worker's 32 images", "of groups of 32 images of the batch", "the same statistics"),
    ("rate on the large set", "1e-3 per step of 32, times 0.9 every 3 million of 36 million steps",
     "1e-3 times the root of batch / 32, times 0.9 at each twelfth of the run; warm-up of 1 %",
     "as usual for averaged gradients and an optimizer that divides by their magnitude"),
    ("ImageNet baseline", "momentum 0.9, rate 1e-2 per 32 images with stepwise decay, 5 million steps (125 passes)",
     "Goyal et al.'s: rate 0.1 per 256 images, a tenth after 1/3, 2/3 and 8/9 of 125 passes; Nesterov",
     "how the paper's rate decays is unknown"),
    ("ImageNet, fine-tuned", "unknown but for all layers", "the baseline's protocol at a tenth of its rate",
     "both rows then differ in the initial weights and the rate alone"),
    ("subsets of the large set", "length of training unknown", "as many steps as for all images; or as many passes",
     "the first separates data from compute, the second lets compute grow with data"),
    ("training length", "checkpoints of one run (as far as is known)", "a run with its own schedule for each length",
     "each has finished its decay"),
    ("classes", "941 classes of JFT-300M that match ImageNet's, on 30 million images",
     "the classes that you list, on a tenth of the images that have one", "the list belongs to the set"),
    ("detection, steps", "9 asynchronous workers with 1 image: 3 million steps on COCO, 590,000 on VOC 2007",
     "synchronous steps of 9 images, a ninth as many, at 9 times the rate; 500 steps of warm-up", "as many images"),
    ("detection, features of boxes", "crop_and_resize to 14 x 14, max-pooled to 7 x 7", "RoIAlign to 7 x 7",
     "crop_and_resize samples once per bin and is TensorFlow's alone"),
    ("detection, codes of the RPN", "scaled by 10, 10, 5, 5, as in the second stage", "not scaled",
     "one RPN for all recipes here"),
    ("detection, frozen features", "which layers were frozen is unknown", "the whole backbone, so res5 too", "unknown"),
    ("COCO evaluation", "minival* of 8,000 images, and test-dev", "val2017, or minival=FILE; test-dev by COCO's server",
     "the list of minival* is not public"),
    ("segmentation", "rate 3e-3; steps, batch, crop, stride and decay unknown",
     "DeepLab v2's: 20,000 steps of 10 crops of 321 pixels, poly decay with power 0.9, stride 8, no CRF", "unknown"),
    ("network", "ResNet-101; whether with the stride in a block's first 1x1 convolution, as He et al., is not known",
     "stride in its 3x3 convolution", "as in published weights; parameters and operations are the same"),
)
"""(what, the paper's as far as it is known, ours, why) of each difference."""


@dataclasses.dataclass(frozen=True)
class Full:
    """The recipes of configs/paper at ``scale=full``.

    Attributes:
      name: TFDS name of the large set; None: Open Images V7.
      open_images: folder of Open Images V7.
      hierarchy: of the large set's classes, see `Hierarchy`; None: that of Open Images in its folder, if it is that.
      matching: file with the names of the large set's classes that match ImageNet's, one per line.
      root: files of the transfer's data, see `detection` and `segmentation`.
      minival: see `transfer.coco`.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
    """

    name: str | None = None
    open_images: str = "open_images_v7"
    hierarchy: str | None = None
    matching: str | None = None
    root: str | None = None
    minival: str | None = None
    data_dir: str | None = None

    deviations = tuple(f"{what}: the paper {theirs}; here {ours} ({why})" for what, theirs, ours, why in DEVIATIONS)

    def depth(self, paper_depth: int) -> int:
        """The paper's own."""
        return paper_depth

    @property
    def large_images(self) -> int | None:
        """Published size of the large set's train split; None: unknown before it is opened."""
        return {None: 9_011_219, "open_images_v4": 1_743_042}.get(self.name)

    def large_set(self) -> tuple[Source, dict[str, Source]]:
        """Training and evaluation sources of the large set."""
        if self.name is None or self.name.startswith("open_images_v4"):
            return pretraining.open_images(self.open_images if self.name is None else None, data_dir=self.data_dir)
        train, held_out = (Tfds(self.name, split, self.data_dir) for split in ("train[:99%]", "train[99%:]"))
        return train, {"held_out": held_out}

    def pretrain_large(self, *, part: float = 1.0, length: float = 1.0, labels: Labels = "all", init: str | None = None,
                       depth: int | None = None, seed: int = 0, exclude: str | None = None) -> Experiment:
        """The large set, from random weights or ``init``.

        Args:
          part: share of its images, nested; with other ``labels``, of those that have one of the matching classes.
          length: share of the full number of steps.
          labels: see `Labels`.
          exclude: file of image ids to leave out.

        Raises:
          UserError: the classes that match ImageNet's are needed and not named.
        """
        train, evals = self.large_set()
        curate: list[Curation] = [Exclude(exclude)] if exclude else []
        hierarchy = self.hierarchy or (
            f"{self.open_images}/bbox_labels_600_hierarchy.json" if self.name is None else None)
        if hierarchy:
            curate.append(AncestorLabels(hierarchy, "skip"))
        if labels != "all":
            if self.matching is None:
                raise UserError("table=classes with scale=full needs matching=FILE, the names of the large set's "
                                "classes that match ImageNet's, one per line")
            curate.append(ImagesWith(self.matching) if labels == "with_imagenets" else ClassSubset(self.matching))
        if part < 1:
            curate.append(NestedSubset(fraction=part))
        experiment = pretraining.jft_pretraining(
            train, evals, steps=round(length * pretraining.JFT_SEEN / BATCH), curate=tuple(curate), depth=depth or 101,
            batch_size=BATCH, seed=seed)
        return dataclasses.replace(experiment, transfer=Transfer(init))

    def pretrain_imagenet(self, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """ImageNet, from random weights."""
        return pretraining.imagenet_pretraining(
            Tfds("imagenet2012", "train", self.data_dir),
            {"validation": Tfds("imagenet2012", "validation", self.data_dir)}, depth=depth or 101, batch_size=BATCH,
            seed=seed)

    def imagenet_finetuning(self, init: str | None, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """ImageNet by one protocol, from random weights or, at a tenth of the rate, from ``init``: all layers, crops of
        299 of 340 pixels, the central crop in evaluation."""
        experiment = self.pretrain_imagenet(depth=depth, seed=seed)
        if init is None:
            return experiment
        rate = 0.1 * experiment.optimizer.learning_rate
        return dataclasses.replace(experiment, transfer=Transfer(init),
                                   optimizer=dataclasses.replace(experiment.optimizer, learning_rate=rate))

    def detection(self, init: str | None, data: Literal["coco", "voc07"], *, depth: int | None = None,
                  freeze: bool = False, seed: int = 0) -> Experiment:
        """The paper's Faster R-CNN, see `transfer.faster_rcnn`; steps of 9 images, a ninth of the paper's; a tenth of
        the rate after 2.5 of 3 million steps (COCO), 490,000 of 590,000 (VOC; unverified).

        ``root`` is, for VOC, a tree with the images of 2007 and 2012 whose ImageSets/Main has trainval0712.txt and
        test2007.txt; for COCO, the folder of its own files, or None for TFDS's.
        """
        if data == "coco":
            train, evals = transfer.coco(self.root, self.minival, self.data_dir)
            length, drop, rate, metric = COCO_STEPS // 9, 2_500_000 / COCO_STEPS, 4e-4, "AP"
        else:
            root = self.root or "VOC0712"
            train, evals = VocTree(root, "trainval0712"), {"test": VocTree(root, "test2007")}
            length, drop, rate, metric = VOC07_STEPS // 9, 490_000 / VOC07_STEPS, 3e-4, "VOC07_AP50"
        return transfer.faster_rcnn(train, evals, recipe="paper", length=length, warmup=500, drops=(drop,), init=init,
                                    image_rate=rate, depth=depth or 101, freeze=freeze, metric=metric, seed=seed)

    def segmentation(self, init: str | None, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """DeepLab-ASPP-L on VOC 2012's 10,582 images, mIoU on its val: `transfer.deeplab`. ``root`` is a VOC tree with
        SegmentationClassAug and train_aug.txt."""
        root = self.root or "VOC2012"
        return transfer.deeplab(VocTree(root, "train_aug", masks="class_aug"),
                                {"val": VocTree(root, "val", masks="class")}, recipe="paper", init=init,
                                depth=depth or 101, seed=seed, dtype="bfloat16")

    def images(self, table: str, part: float = 1.0) -> int | None:
        """Published number of images of what a run learns from: of the sets "imagenet" and "large", and of tasks."""
        if table == "large":
            return None if self.large_images is None else round(part * self.large_images)
        return {"imagenet": 1_281_167, "voc07": 16_551, "voc12": 10_582}.get(table, 117_266)
