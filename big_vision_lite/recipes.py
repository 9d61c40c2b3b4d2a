"""Recipes that several configs share: the network, the optimiser and the schedule, but not the data."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from big_vision_lite.backbones.backbone import Backbone, Pixels
from big_vision_lite.backbones.norm import BatchNorm, whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.coco_json import CocoJson
from big_vision_lite.data.curation import (
    AncestorLabels,
    Curation,
    Exclude,
    LabelNoise,
    NestedSubset,
    Vocabulary,
    curation,
)
from big_vision_lite.data.joint_transforms import Fit, ScaleJitter
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.data.transforms import ResizeCrop, Squash
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4, FPN
from big_vision_lite.heads.segmentation import ASPPL, DeepLabV3, Segmentation, dilated
from big_vision_lite.training.optimizers import SGD, RMSProp
from big_vision_lite.training.schedules import Poly, Staircase, Step
from big_vision_lite.training.transfer import Transfer

WORKER_BATCH = 32
"""Images that each of the paper's 50 asynchronous workers took at a time (reported, unverified)."""


def curated_by(*, exclude: str | None = None, hierarchy: str | None = None, vocabulary: int | None = None,
               subset: int | None = None, stratified: bool = False, precision: float = 1.0) -> tuple[Curation, ...]:
    """The curation that a config's arguments ask for, in the usual order; None (or 1) asks for nothing."""
    return curation(
        exclude=Exclude(exclude) if exclude else None,
        ancestors=AncestorLabels(hierarchy, "skip") if hierarchy else None,
        vocabulary=Vocabulary(vocabulary) if vocabulary else None,
        subset=NestedSubset(subset, stratified=stratified) if subset else None,
        noise=LabelNoise(precision) if precision < 1 else None,
    )


def jft_pretraining(train: Source, evals: dict[str, Source], images: int, *, curate: tuple[Curation, ...] = (),
                    depth: int = 101, epochs: float = 4.0, batch_size: int = 1024, seed: int = 0,
                    dtype: str = "bfloat16") -> Experiment:
    """Pretraining as on JFT-300M (Sun et al., 2017, section 4).

    The paper's, reported but unverified: a logistic loss a label, RMSProp with momentum 0.9, rate 1e-3 times 0.9 every
    3 million steps of 32 images, weight decay 1e-4, 340 pixels and a crop of 299 scaled to -1 to 1, 36 million steps.
    Four epochs are known from a second source. Ours: the steps are synchronous, so the rate grows with the square root
    of the batch, as for other optimisers that divide by the gradient's size, and the rate falls after the same number
    of images; the rate rises over the first 1 % of the run.

    Args:
      images: in an epoch, after curation.
    """
    steps = max(1, round(epochs * images / batch_size))
    every = max(1, round(3_000_000 * WORKER_BATCH / batch_size))
    schedule = Staircase(warmup=steps // 100, every=every)
    return Experiment(
        train=Input(train, ResizeCrop(resize=340, size=299), batch_size, on_bad_image="mask", curate=curate),
        evals=_evals(evals, batch_size, curate),
        backbone=ResNet(depth, norm=BatchNorm(group=math.gcd(WORKER_BATCH, batch_size)), dtype=dtype,
                        pixels=Pixels((127.5,) * 3, (127.5,) * 3)),
        head=Classification("sigmoid"),
        optimizer=RMSProp(1e-3 * (batch_size / WORKER_BATCH) ** 0.5, schedule=schedule, weight_decay=1e-4),
        steps=steps,
        seed=seed,
        log_every=100,
        eval_every=max(1, steps // 10),
    )


def imagenet_pretraining(train: Source, evals: dict[str, Source], images: int, *, curate: tuple[Curation, ...] = (),
                         depth: int = 101, epochs: float = 90.0, batch_size: int = 1024, seed: int = 0,
                         dtype: str = "bfloat16") -> Experiment:
    """The ImageNet baseline with the paper's 340 and 299 pixels.

    Its optimisation is only remembered in parts (momentum 0.9, decay 1e-4, about 128 epochs: unverified), so it is that
    of Goyal et al. (2017): SGD, rate 0.1 for 256 images and linear in the batch, 5 epochs of warm-up, a tenth after 30,
    60 and 80 of 90 epochs, label smoothing 0.1.
    """
    steps = max(1, round(epochs * images / batch_size))
    return Experiment(
        train=Input(train, ResizeCrop(resize=340, size=299), batch_size, on_bad_image="mask", curate=curate),
        evals=_evals(evals, batch_size, curate),
        backbone=ResNet(depth, norm=BatchNorm(group=math.gcd(WORKER_BATCH, batch_size)), dtype=dtype),
        head=Classification("softmax", label_smoothing=0.1),
        optimizer=SGD(0.1 * batch_size / 256, schedule=Step(warmup=round(5 / 90 * steps)), weight_decay=1e-4,
                      nesterov=True),
        steps=steps,
        seed=seed,
        log_every=100,
        eval_every=max(1, steps // 18),
    )


def _evals(evals: dict[str, Source], batch_size: int, curate: tuple[Curation, ...]) -> dict[str, Input]:
    """The central crop of the whole of each source, whose labels count as their ancestors when those of training do."""
    crop = ResizeCrop(resize=340, size=299, random=False)
    grown = tuple(step for step in curate if isinstance(step, AncestorLabels))
    return {name: Input(source, crop, batch_size, on_bad_image="mask", curate=grown) for name, source in evals.items()}


class HyperRule(NamedTuple):
    """What BiT's rule says of a data set."""

    resize: int
    crop: int
    steps: int
    decays: tuple[float, ...]
    """When the rate falls to a tenth, as fractions of the run."""
    warmup: int
    mixup: float


def hyper_rule(images: int, pixels: int) -> HyperRule:
    """BiT's HyperRule: how to fine-tune, from the size of the data set and of its images alone (Kolesnikov et al.,
    2020, section 3.3; warm-up as in their code).

    Args:
      images: to learn from.
      pixels: height times width of a typical image.
    """
    sides = (160, 128) if pixels < 96 * 96 else (448, 384)
    if images < 20_000:
        return HyperRule(*sides, 500, (200 / 500, 300 / 500, 400 / 500), 100, 0.0)
    return HyperRule(*sides, 10_000 if images < 500_000 else 20_000, (0.3, 0.6, 0.9), 500, 0.1)


def bit_finetuning(train: Source, evals: dict[str, Source], images: int, *, init: str | None, pixels: int,
                   backbone: Backbone, batch_size: int = 512, multi_label: bool = False, seed: int = 0,
                   freeze: bool = False, curate: tuple[Curation, ...] = (),
                   sides: tuple[int, int] | None = None) -> Experiment:
    """Fine-tune a pretrained network to a data set by the HyperRule: SGD, rate 0.003 for 512 images, momentum 0.9, no
    weight decay, all layers, and for larger sets mixup.

    Args:
      images, pixels: as `hyper_rule`.
      init: what to start from; see `Transfer`.
      freeze: learn the head alone.
      sides: (resize, crop) in place of the rule's.
    """
    rule = hyper_rule(images, pixels)
    resize, crop = sides or rule[:2]
    return Experiment(
        train=Input(train, ResizeCrop(resize=resize, size=crop), batch_size, on_bad_image="mask", curate=curate),
        evals={name: Input(source, Squash(crop), batch_size, on_bad_image="mask") for name, source in evals.items()},
        backbone=backbone,
        head=Classification("sigmoid" if multi_label else "softmax", mixup=rule.mixup),
        optimizer=SGD(0.003 * batch_size / 512, schedule=Step(warmup=rule.warmup, at=rule.decays), weight_decay=0.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=rule.steps,
        seed=seed,
        eval_every=max(1, rule.steps // 5),
    )


class Known(NamedTuple):
    """A data set of TFDS's catalogue."""

    images: int
    """To learn from."""
    pixels: int
    """Height times width of a typical image."""
    train: str
    evaluate: str
    name: str | None = None
    """In the catalogue, where it is not the key."""
    label: str | None = None
    """The feature that is the label, where there are several."""


CATALOGUE = {
    "imagenet2012": Known(1_281_167, 500 * 375, "train", "validation"),
    "cifar10": Known(50_000, 32 * 32, "train", "test"),
    "cifar100": Known(50_000, 32 * 32, "train", "test"),
    "oxford_iiit_pet": Known(3_680, 500 * 375, "train", "test"),
    "oxford_flowers102": Known(2_040, 500 * 500, "train+validation", "test"),
}
"""The data sets of the paper's successors, with the splits that they use (BiT's flowers: training and validation)."""


def tfds_finetuning(name: str, known: Known, *, init: str | None, depth: int = 50, backbone: Backbone | None = None,
                    batch_size: int = 512, freeze: bool = False, data_dir: str | None = None,
                    subset: int | None = None, seed: int = 0, sides: tuple[int, int] | None = None) -> Experiment:
    """`bit_finetuning` on a data set of TFDS, with the backbone of the run that ``init`` names, else a ResNet.

    Args:
      subset: learn from so many images, with the classes in their proportions.
      depth: of the backbone, where ``init`` is not a run.
      backbone: in place of these.
    """
    train, evaluate = (Tfds(known.name or name, split, data_dir, label_key=known.label)
                       for split in (known.train, known.evaluate))
    return bit_finetuning(
        train, {"evaluation": evaluate}, subset or known.images, init=init, pixels=known.pixels,
        backbone=backbone or backbone_of(init) or ResNet(depth), batch_size=batch_size, freeze=freeze, seed=seed,
        sides=sides, curate=curated_by(subset=subset, stratified=True))


def coco(root: str | None = None, minival: str | None = None,
         data_dir: str | None = None) -> tuple[Source, dict[str, Source]]:
    """COCO 2017 for detection: what to learn from, and what to score on by the name that says what it is.

    Args:
      root: folder of COCO's own files (annotations/, train2017/, val2017/); None: TFDS's coco/2017.
      minival: file of ids of val2014's images, one a line: scores are on these, named minival, and train2017, which has
        all of 2014 but val2017, goes without them. Needs ``root``. None: scores are on val2017.

    Raises:
      UserError: a list without ``root``.
    """
    if root is None:
        if minival is not None:
            raise UserError(f"minival={minival} names images by COCO's ids; give the folder of COCO's files as root")
        return Tfds("coco/2017", "train", data_dir), {"val2017": Tfds("coco/2017", "validation", data_dir)}

    def split(name: str, **lists: str | None) -> CocoJson:
        return CocoJson(f"{root}/annotations/instances_{name}.json", f"{root}/{name}", **lists)

    held_out = {"val2017": split("val2017")} if minival is None else {"minival": split("val2014", only=minival)}
    return split("train2017", without=minival), held_out


def faster_rcnn(train: Source, evals: dict[str, Source], *, recipe: Literal["paper", "c4", "fpn"], steps: int,
                drops: tuple[float, ...], init: str | None, depth: int = 50, batch_size: int = 16, warmup: int = 1000,
                freeze: bool = False, tune_statistics: bool = False, metric: str = "AP", seed: int = 0,
                dtype: str = "bfloat16") -> Experiment:
    """Transfer to detection, by the paper's recipe or by detectron2's (Wu et al. 2019, Base-RCNN-C4 and -FPN).

    paper: C4, short side 600 and long at most 1024, 300 proposals, 64 boxes an image, NMS at 0.6, momentum 0.9, all
    layers but BatchNorm learn (Sun et al., 2017, section 4, after Huang et al., 2017; in parts unverified).
    c4, fpn: short side 640 to 800, long at most 1333; stem and first stage fixed, 512 boxes an image; rate 0.02 for 16
    images and linear in the batch, the number of steps inversely.

    Args:
      steps: for 16 images (paper: for 9).
      drops: when the rate falls to a tenth, as fractions of the run.
      warmup: steps for 16 images.
      freeze: the whole backbone stays as it is.
      tune_statistics: BatchNorm learns and normalises by the batch, and nothing is fixed: for networks of one's own,
        whose statistics and rates are not those of the published ones.
    """
    usual, rate = (9, 9 * 4e-4) if recipe == "paper" else (16, 0.02)
    share = batch_size / usual
    if recipe == "paper":
        head, sides, long = FasterRCNN(C4(), nms=0.6, metric=metric), 600, 1024
    else:
        c4 = C4(rpn_channels=1024, candidates=(6000, 6000), proposals=(2000, 1000), rois=512)
        head = FasterRCNN(c4 if recipe == "c4" else FPN(dtype=dtype), metric=metric)
        sides, long = (640, 672, 704, 736, 768, 800), 1333
    fixed = () if recipe == "paper" or tune_statistics else ("backbone.stem", "backbone.stem_norm", "backbone.stages.0")
    steps = max(1, round(steps / share))
    return Experiment(
        train=Input(train, Fit(sides, long, masks=False), batch_size, on_bad_image="mask"),
        evals={name: Input(source, Fit(sides, long, random=False, masks=False), batch_size, on_bad_image="mask")
               for name, source in evals.items()},
        backbone=whole_batch(backbone_of(init) or ResNet(depth, dtype=dtype)),
        head=head,
        optimizer=SGD(rate * share, schedule=Step(warmup=round(warmup / share), at=drops), weight_decay=1e-4),
        transfer=Transfer(init, freeze=("backbone",) if freeze else fixed, freeze_statistics=not tune_statistics),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=max(1, steps // 6),
    )


def deeplab(train: Source, evals: dict[str, Source], *, recipe: Literal["paper", "mmseg"], init: str | None,
            depth: int = 101, batch_size: int | None = None, steps: int = 20_000, freeze: bool = False,
            several_views: bool = False, seed: int = 0, dtype: str = "float32") -> Experiment:
    """Transfer to segmentation of images of at most 500 pixels a side, at output stride 8.

    paper: DeepLab-ASPP-L, rate 3e-3, momentum 0.9 (Sun et al., 2017, section 4; unverified). Its steps, batch, crop,
    stride and decay are unknown: those of DeepLab v2 (Chen et al. 2016: power 0.9, 20,000 steps of 10 images, 321
    pixels, BatchNorm not trained). No CRF.
    mmseg: DeepLabV3 with an auxiliary head, 16 crops of 512 pixels (mmsegmentation's deeplabv3_r101-d8, 20k).

    Args:
      depth: of the backbone, where ``init`` is not a run.
      batch_size: the rate grows linearly with it; None: the recipe's.
      freeze: learn the decoder alone.
      several_views: evaluate at six scales and mirrored.
    """
    usual = 10 if recipe == "paper" else 16
    batch = batch_size or usual
    views = dict(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True) if several_views else {}
    if recipe == "paper":
        crop, size = ScaleJitter(321), 513
        whole = ScaleJitter(size, scale=(1.0, 1.0), random=False)
        head = Segmentation(ASPPL(), size, **views)
        optimizer = SGD(3e-3 * batch / usual, schedule=Poly(), weight_decay=5e-4)
    else:
        crop, size = ScaleJitter(512, photometric=True), 768
        whole = Fit(short=512, long=size, buckets=((512, size), (size, 512)), random=False)
        head = Segmentation(DeepLabV3((12, 24, 36), channels=512), size, auxiliary=0.4, **views)
        optimizer = SGD(0.01 * batch / usual, schedule=Poly(final=0.01), weight_decay=5e-4)
    return Experiment(
        train=Input(train, crop, batch, on_bad_image="mask"),
        evals={name: Input(source, whole, batch, on_bad_image="mask") for name, source in evals.items()},
        backbone=dilated(whole_batch(backbone_of(init) or ResNet(depth, dtype=dtype)), 8),
        head=head,
        optimizer=optimizer,
        transfer=Transfer(init, freeze=("backbone",) if freeze else (),
                          freeze_statistics=recipe == "paper" and init is not None),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=max(1, steps // 5),
    )
