"""Pretraining recipes: the paper's for JFT-300M, and the ImageNet baseline."""

from __future__ import annotations

import dataclasses
import math

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation.steps import (
    AncestorLabels,
    ClassSubset,
    Curation,
    Exclude,
    LabelNoise,
    NestedSubset,
    curation,
)
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.open_images import OpenImages
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.transforms.image import ResizeCrop
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD, Optimizer, RMSProp
from big_vision_lite.training.schedules import Staircase, Step

WORKER_BATCH = 32
"""Images per step of each of the paper's 50 asynchronous workers (reported, unverified)."""
JFT_SEEN, IMAGENET_SEEN = 36_000_000 * WORKER_BATCH, 5_000_000 * WORKER_BATCH
"""Images that the paper's pretrainings saw: 3.8 passes over JFT-300M and 125 over ImageNet (reported, unverified)."""
DECAYS = 12
"""Times that the rate falls to 0.9 of its value in the paper's 36 million steps: every 3 million."""


def curated_by(*, exclude: str | None = None, hierarchy: str | None = None, vocabulary: int | None = None,
               subset: int | None = None, stratified: bool = False, precision: float = 1.0,
               seed: int = 0) -> tuple[Curation, ...]:
    """The curation for a config's arguments, in the usual order; None (or a precision of 1) adds no step."""
    return curation(
        exclude=Exclude(exclude) if exclude else None,
        ancestors=AncestorLabels(hierarchy, "skip") if hierarchy else None,
        classes=ClassSubset(vocabulary) if vocabulary else None,
        subset=NestedSubset(subset, seed=seed, stratified=stratified) if subset else None,
        noise=LabelNoise(precision) if precision < 1 else None,
    )


def open_images(root: str | None, confidence: float = 0.5,
                data_dir: str | None = None) -> tuple[Source, dict[str, Source]]:
    """Training and evaluation sources of Open Images; evaluation is by labels that people verified.

    Args:
      root: folder of Open Images V7; None: TFDS's open_images_v4, which has the images with boxes only.
      confidence: of a machine's labels, from 0 to 1.
    """
    if root is not None:
        return OpenImages(root, "train", min_confidence=confidence), {
            "validation": OpenImages(root, "validation", labels="human")}
    train, validation = (Tfds("open_images_v4", split, data_dir, label_key="objects_trainable", min_confidence=least)
                         for split, least in (("train", 10 * confidence), ("validation", 10)))
    return train, {"validation": validation}


def jft_pretraining(train: Source, evals: dict[str, Source], *, steps: int | None = None,
                    curate: tuple[Curation, ...] = (), depth: int = 101, batch_size: int = 1024,
                    seed: int = 0) -> Experiment:
    """Pretraining as on JFT-300M (Sun et al., 2017, section 4).

    The paper's, reported but unverified: a logistic loss per label, RMSProp with momentum 0.9, rate 1e-3 times 0.9
    every 3 million steps of 32 images, weight decay 1e-4, images resized to 340 pixels, crops of 299 scaled to -1 to 1,
    36 million steps. A second source confirms four epochs. Ours: steps are synchronous, so the rate grows with the
    square root of the batch, as usual for optimizers that divide by the gradient's magnitude; it falls as often as the
    paper's in a run of any length; warm-up takes the first 1 % of the run.

    Args:
      steps: None: as many images as the paper's run saw, whatever the size of the set.
    """
    schedule = Staircase(warmup=0.01, every=1 / DECAYS)
    return _pretraining(
        train, evals, steps or round(JFT_SEEN / batch_size), curate, depth, batch_size, seed,
        Classification("sigmoid", max_labels=None), eval_every=1 / 10,
        optimizer=RMSProp(1e-3 * (batch_size / WORKER_BATCH) ** 0.5, schedule=schedule, weight_decay=1e-4))


def imagenet_pretraining(train: Source, evals: dict[str, Source], *, steps: int | None = None,
                         curate: tuple[Curation, ...] = (), depth: int = 101, batch_size: int = 1024,
                         seed: int = 0) -> Experiment:
    """The ImageNet baseline: crops, network and evaluation as in `jft_pretraining`.

    The paper's optimization is known in part (momentum 0.9, decay 1e-4, rate 1e-2 per 32 images, 5 million steps:
    unverified; how the rate decays is unknown), so this is that of Goyal et al. (2017): SGD, rate 0.1 per 256 images, a
    tenth after 30, 60 and 80 of 90 epochs, here shares of the run.

    Args:
      steps: None: as many images as the paper's run saw.
    """
    return _pretraining(
        train, evals, steps or round(IMAGENET_SEEN / batch_size), curate, depth, batch_size, seed,
        Classification("softmax"), eval_every=1 / 18,
        optimizer=SGD(0.1 * batch_size / 256, schedule=Step(warmup=0.05556), weight_decay=1e-4, nesterov=True))


def _pretraining(train: Source, evals: dict[str, Source], steps: int, curate: tuple[Curation, ...], depth: int,
                 batch_size: int, seed: int, head: Classification, optimizer: Optimizer,
                 eval_every: float) -> Experiment:
    crop = ResizeCrop(resize=340, size=299)
    central_crop = dataclasses.replace(crop, random=False)
    # Where training adds ancestors to labels, evaluation does too.
    ancestors = tuple(step for step in curate if isinstance(step, AncestorLabels))
    return Experiment(
        train=Input(train, crop, batch_size, on_bad_image="mask", curate=curate),
        evals={name: Input(source, central_crop, batch_size, on_bad_image="mask", curate=ancestors)
               for name, source in evals.items()},
        backbone=ResNet(depth, norm=BatchNorm(group=math.gcd(WORKER_BATCH, batch_size)), dtype="bfloat16"),
        head=head,
        optimizer=optimizer,
        steps=max(1, steps),
        seed=seed,
        log_every=100,
        eval_every=eval_every,
    )
