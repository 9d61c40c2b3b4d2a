"""The paper's tables in miniature: generated scenes and small ResNets, for two CPU cores.

2,000 scenes with one object each, of few and equally frequent classes, and right labels, stand in for ImageNet; 64,000
scenes of all classes, with a long tail, ancestors and a fifth of the labels wrong, for JFT-300M. As in the paper, the
large set is seen 4 times, and learning it takes 7.2 times the compute of the small one (36 million steps to 5 million).
The classes of detection and segmentation occur in neither set.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.data.curation.hierarchy import EMOJI
from big_vision_lite.data.curation.steps import (
    AncestorLabels,
    ClassSubset,
    Curation,
    ImagesWith,
    LabelNoise,
    NestedSubset,
)
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import vocabulary
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize, Transform
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4
from big_vision_lite.heads.head import Head
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.recipes.miniature import SIZE, small_resnet
from big_vision_lite.training.optimizers import SGD, AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer

Labels = Literal["all", "with_imagenets", "imagenets"]
"""Of the large set: all images; those with one of the small set's classes, with all their labels; the same images with
these classes alone."""
LARGE_IMAGES, SMALL_IMAGES = 64_000, 2_000
CLASSES, SMALL_CLASSES = 780, 50
"""The most frequent emoji; the small set has the first 50 of them."""
TASKS = {"coco": (780, 800), "voc07": (800, 812), "voc12": (812, 824)}
"""The emoji of each task, by their rank; each occurs in one task alone."""
PRECISION = 0.8
"""Share of right labels in the large set, as estimated for JFT-300M (Kolesnikov et al. 2020, section 3.1)."""
PASSES = 4
COMPUTE_RATIO = 36 / 5
"""Images seen of the large set over those of the small one: 36 and 5 million steps (reported, unverified)."""
BATCH = 64
LARGE_STEPS = PASSES * LARGE_IMAGES // BATCH
SMALL_STEPS = round(LARGE_STEPS / COMPUTE_RATIO)
RATES = (0.01, 0.01)
"""Peak rates for the small and the large set. That of the large set was swept on such scenes
(docs/results/surface/scenes_rates.csv), that of the small one was not."""
SMALL_C4 = C4(rpn_channels=64, pre_nms_topk=(500, 500), post_nms_topk=(64, 64), rois_per_image=32, pooler_resolution=6)
"""The paper's detector for scenes of 64 pixels."""
TRANSFER_STEPS = 1_500
TRANSFER_IMAGES, TEST_IMAGES = 1_000, 1_000


@dataclasses.dataclass(frozen=True)
class Miniature:
    """The recipes of configs/paper at ``scale=mini``.

    Attributes:
      rates: peak learning rates of pretraining on the small and on the large set; those of transfers are fixed.
      transfer_steps: length of each transfer.
      transfer_rate: of detection and segmentation.
    """

    rates: tuple[float, float] = RATES
    transfer_steps: int = TRANSFER_STEPS
    transfer_rate: float = 0.02

    deviations = ("generated scenes and small networks, with the proportions of the paper's recipe: compare the order "
                  "of rows, never the values",)

    def depth(self, paper_depth: int) -> int:
        """The network that stands for one of the paper's three in the study of capacity."""
        return {50: 10, 101: 18, 152: 34}[paper_depth]

    def images(self, table: str, part: float = 1.0) -> int:
        """Images of what a run learns from: of the sets "imagenet" and "large", and of tasks."""
        return round(part * LARGE_IMAGES) if table == "large" else {"imagenet": SMALL_IMAGES}.get(
            table, TRANSFER_IMAGES)

    def pretrain_imagenet(self, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """The small set, from random weights."""
        return self._classification(_small("train"), {"validation": _small("validation")}, Classification("softmax"),
                                    self.rates[0], SMALL_STEPS, depth, seed)

    def pretrain_large(self, *, part: float = 1.0, length: float = 1.0, labels: Labels = "all", init: str | None = None,
                       depth: int | None = None, seed: int = 0) -> Experiment:
        """The large set, from random weights or ``init``.

        Args:
          part: share of its images, nested.
          length: share of the full number of steps.
          labels: see `Labels`. A ``part`` is of the images of the whole set in any case.
        """
        def source(split: str, images: int) -> PreparedEmojiScenes:
            return PreparedEmojiScenes(split, images, size=SIZE, classes=CLASSES, objects=(1, 2), zipf=1.0)

        # The noise is the set's: it is in the labels before anything is chosen by them.
        ancestors = AncestorLabels(EMOJI, "add")
        curate: list[Curation] = [LabelNoise(PRECISION, seed=seed), ancestors]
        if labels != "all":
            few = vocabulary(SMALL_CLASSES).names
            curate.append(ImagesWith(few) if labels == "with_imagenets" else ClassSubset(few))
        if part < 1:
            curate.append(NestedSubset(round(part * LARGE_IMAGES), seed=seed))
        experiment = self._classification(
            source("train", LARGE_IMAGES), {"validation": source("validation", 5_000)}, Classification("sigmoid"),
            self.rates[1], round(length * LARGE_STEPS), depth, seed, tuple(curate), (ancestors,))
        return dataclasses.replace(experiment, transfer=Transfer(init))

    def imagenet_finetuning(self, init: str | None, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """The small set from random weights, or from ``init`` at a tenth of the rate; the same steps for both."""
        experiment = self._classification(
            _small("train"), {"test": _small("test")}, Classification("softmax"),
            self.rates[0] * (0.1 if init else 1.0), self.transfer_steps, depth, seed)
        return dataclasses.replace(experiment, transfer=Transfer(init))

    def detection(self, init: str | None, data: Literal["coco", "voc07"], *, depth: int | None = None,
                  freeze: bool = False, seed: int = 0) -> Experiment:
        """Faster R-CNN with res5 as its second stage, for scenes of 64 pixels."""
        head = FasterRCNN(SMALL_C4, max_boxes=16, metric="AP" if data == "coco" else "VOC07_AP50")
        return self._transfer(data, head, init, ResizeToFit(64, 64), depth, freeze, seed)

    def segmentation(self, init: str | None, *, depth: int | None = None, seed: int = 0) -> Experiment:
        """DeepLab-ASPP-L for scenes of 64 pixels."""
        head = Segmentation(ASPPL(rates=(1, 2, 3, 4)), size=64)
        return self._transfer("voc12", head, init, ScaleJitter(64), depth, False, seed)

    def _classification(self, train: PreparedEmojiScenes, evals: dict[str, PreparedEmojiScenes], head: Head,
                        rate: float, steps: int, depth: int | None, seed: int, curate: tuple[Curation, ...] = (),
                        curate_evals: tuple[Curation, ...] = ()) -> Experiment:
        return Experiment(
            train=Input(train, RandomCropPadded(SIZE, pad=SIZE // 8), BATCH, curate=curate, resident="host"),
            evals={name: Input(source, Resize(SIZE), BATCH, curate=curate_evals) for name, source in evals.items()},
            backbone=small_resnet(depth or 10),
            head=head,
            optimizer=AdamW(rate, schedule=Cosine(warmup=0.05), weight_decay=0.02),
            steps=steps,
            seed=seed,
            log_every=50,
        )

    def _transfer(self, task: str, head: Head, init: str | None, transform: Transform, depth: int | None, freeze: bool,
                  seed: int) -> Experiment:
        first, last = TASKS[task]

        def scenes(split: str, images: int) -> PreparedEmojiScenes:
            return PreparedEmojiScenes(split, images, size=64, classes=vocabulary(last).names[first:], objects=(1, 3),
                                       zipf=0.0)

        return Experiment(
            train=Input(scenes("train", TRANSFER_IMAGES), transform, 16),
            evals={"test": Input(scenes("test", TEST_IMAGES), ResizeToFit(64, 64, random=False), 16)},
            # From scratch BatchNorm sees the whole batch, which is too small for groups; else it is fixed.
            backbone=dataclasses.replace(small_resnet(depth or 10), norm=BatchNorm()),
            head=head,
            optimizer=SGD(self.transfer_rate, schedule=Cosine(warmup=0.1), weight_decay=1e-4, grad_clip_norm=10.0),
            transfer=Transfer(init, freeze=("backbone",) if freeze else (), freeze_batchnorm=init is not None),
            steps=self.transfer_steps,
            seed=seed,
            log_every=50,
        )


def _small(split: str) -> PreparedEmojiScenes:
    images = {"train": SMALL_IMAGES, "validation": 1_000, "test": 2_000}[split]
    return PreparedEmojiScenes(split, images, size=SIZE, classes=SMALL_CLASSES, objects=(1, 1), zipf=0.0)
