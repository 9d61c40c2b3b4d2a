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
from big_vision_lite.data.transforms.image import ResizeCrop
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD, RMSProp
from big_vision_lite.training.schedules import Staircase, Step

WORKER_BATCH = 32
"""Images per step of each of the paper's 50 asynchronous workers (reported, unverified)."""


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


def jft_pretraining(train: Source, evals: dict[str, Source], train_images: int, *, curate: tuple[Curation, ...] = (),
                    depth: int = 101, epochs: float = 4.0, batch_size: int = 1024, seed: int = 0) -> Experiment:
    """Pretraining as on JFT-300M (Sun et al., 2017, section 4).

    The paper's, reported but unverified: a logistic loss per label, RMSProp with momentum 0.9, rate 1e-3 times 0.9
    every 3 million steps of 32 images, weight decay 1e-4, images resized to 340 pixels, crops of 299 scaled to -1 to 1,
    36 million steps. A second source confirms four epochs. Ours: steps are synchronous, so the rate grows with the
    square root of the batch, as usual for optimizers that divide by the gradient's magnitude, and decays after the same
    number of images; warm-up takes the first 1 % of the run.

    Args:
      train_images: images per epoch, after curation.
    """
    crop = ResizeCrop(resize=340, size=299)
    central_crop = dataclasses.replace(crop, random=False)
    # Where training adds ancestors to labels, evaluation does too.
    ancestors = tuple(step for step in curate if isinstance(step, AncestorLabels))
    schedule = Staircase(warmup=0.01, every=max(1, round(3_000_000 * WORKER_BATCH / batch_size)))
    return Experiment(
        train=Input(train, crop, batch_size, on_bad_image="mask", curate=curate),
        evals={name: Input(source, central_crop, batch_size, on_bad_image="mask", curate=ancestors)
               for name, source in evals.items()},
        backbone=ResNet(depth, norm=BatchNorm(group=math.gcd(WORKER_BATCH, batch_size)), dtype="bfloat16"),
        head=Classification("sigmoid"),
        optimizer=RMSProp(1e-3 * (batch_size / WORKER_BATCH) ** 0.5, schedule=schedule, weight_decay=1e-4),
        steps=max(1, round(epochs * train_images / batch_size)),
        seed=seed,
        log_every=100,
        eval_every=1 / 10,
    )


def imagenet_pretraining(train: Source, evals: dict[str, Source], train_images: int, *,
                         curate: tuple[Curation, ...] = (), depth: int = 101, epochs: float = 90.0,
                         batch_size: int = 1024, seed: int = 0) -> Experiment:
    """The ImageNet baseline: crops, network and evaluation as in `jft_pretraining`.

    The paper's optimization is known in part (momentum 0.9, decay 1e-4, about 128 epochs: unverified), so this is that
    of Goyal et al. (2017): SGD, rate 0.1 per 256 images, 5 epochs of warm-up, a tenth after 30, 60 and 80 of 90 epochs,
    label smoothing 0.1.
    """
    jft = jft_pretraining(train, evals, train_images, curate=curate, depth=depth, epochs=epochs, batch_size=batch_size,
                          seed=seed)
    return dataclasses.replace(
        jft, head=Classification("softmax", label_smoothing=0.1),
        optimizer=SGD(0.1 * batch_size / 256, schedule=Step(warmup=0.05556), weight_decay=1e-4, nesterov=True),
        eval_every=1 / 18)
