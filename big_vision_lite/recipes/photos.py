"""Recipes for folders of small photos, one folder per class: pretraining on one, transfer to another."""

from __future__ import annotations

import dataclasses
from typing import Literal

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation.steps import Curation, NestedSubset, ParentLabels
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.data.transforms.views import byol_views, simclr_views
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.self_supervised import BYOL, SimCLR
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.schedules import Cosine, Schedule
from big_vision_lite.training.transfer import Transfer

SIZE = 32
"""Width and height of the photos in pixels."""

Method = Literal["simclr", "byol"]
"""How to learn without labels."""


def photos_pretraining(root: str, *, steps: int, curate: tuple[Curation, ...] = (), depth: int = 10,
                       width: float = 0.25, batch_size: int = 64, rate: float = 0.1,
                       schedule: Schedule | None = None, seed: int = 0,
                       evals: tuple[str, ...] = ("val", "test"), hierarchy: str | None = None) -> Experiment:
    """Classification of photos by SGD, as usual for CIFAR since He et al. (2016): padded crops, flips, weight decay
    5e-4.

    Args:
      root: folder with a folder per split, each with one per class.
      curate: which photos are learned, and with which labels. Evaluations have the correct labels; with `ParentLabels`,
        those of the parents.
      schedule: of the rate; by default a cosine.
      evals: splits that are evaluated, at the end only; choices are made by the first.
      hierarchy: csv file with the columns child,parent: also score the superclasses, see `Classification.hierarchy`.
    """
    parents = tuple(step for step in curate if isinstance(step, ParentLabels))
    return Experiment(
        train=Input(ImageFolder(root, "train"), RandomCropPadded(SIZE, pad=SIZE // 8), batch_size, curate=curate,
                    resident="host"),
        evals={name: Input(ImageFolder(root, name), Resize(SIZE), 128, curate=parents) for name in evals},
        backbone=ResNet(depth, width=width, norm=BatchNorm(group=min(64, batch_size)), stem="half"),
        head=Classification("softmax", hierarchy=hierarchy),
        optimizer=SGD(rate, schedule=schedule or Cosine(warmup=0.05), weight_decay=5e-4, nesterov=True),
        steps=steps,
        seed=seed,
        log_every=50,
    )


def photos_self_supervised(root: str, method: Method, *, steps: int, curate: tuple[Curation, ...] = (),
                           depth: int = 10, width: float = 0.25, batch_size: int = 256, rate: float | None = None,
                           seed: int = 0, evals: tuple[str, ...] = ("val", "test")) -> Experiment:
    """Learning from photos without their labels, by the network of `photos_pretraining`: SimCLR with the paper's
    temperature and jitter for CIFAR-10 (Chen et al. 2020, appendix B.9), or BYOL; both by SGD instead of LARS, which is
    for batches of thousands. Evaluations compare views.

    Args:
      root, curate, evals: as of `photos_pretraining`; labels are read for curation only.
      rate: by default 0.06 for 128 photos, in proportion to the batch.
    """
    supervised = photos_pretraining(root, steps=steps, depth=depth, width=width, batch_size=batch_size, seed=seed,
                                    curate=curate, evals=())
    simclr = method == "simclr"
    views = simclr_views(SIZE, strength=0.5) if simclr else byol_views(SIZE)
    return dataclasses.replace(
        supervised,
        train=Input(ImageFolder(root, "train"), views, batch_size, curate=curate),
        evals={name: Input(ImageFolder(root, name), views, batch_size) for name in evals},
        head=SimCLR(hidden=512, size=128, temperature=0.5) if simclr else BYOL(hidden=1024, size=128),
        optimizer=SGD(rate or 0.06 * batch_size / 128, schedule=Cosine(warmup=0.1), weight_decay=5e-4),
    )


def photos_probe(root: str, split: str = "val") -> Probe:
    """How well labels can be read from features of photos: nearest neighbours and a linear probe."""
    train, test = (Input(ImageFolder(root, name), Resize(SIZE), 128, resident="host") for name in ("train", split))
    return Probe(train, test, ("neighbours", "linear"))


def photos_transfer(init: str | None, root: str, *, images: int, freeze: bool = False, steps: int = 500,
                    depth: int = 10, width: float = 0.25, batch_size: int = 64, rate: float | None = None,
                    seed: int = 0) -> Experiment:
    """Classify other photos, learning from few of them.

    Args:
      init: see `Transfer.init`; None: from scratch.
      root: as in `photos_pretraining`.
      images: photos to learn from, with the shares of the classes kept.
      freeze: train only the head.
      rate: by default 0.5 for a head alone, 0.1 from scratch, else 0.05.
    """
    rate = rate or (0.5 if freeze else 0.1 if init is None else 0.05)
    return Experiment(
        train=Input(ImageFolder(root, "train"), RandomCropPadded(SIZE, pad=SIZE // 8), batch_size,
                    curate=(NestedSubset(images, seed=seed, stratified=True),), resident="host"),
        evals={"test": Input(ImageFolder(root, "test"), Resize(SIZE), 128)},
        backbone=ResNet(depth, width=width, norm=BatchNorm(group=min(64, batch_size)), stem="half"),
        head=Classification("softmax"),
        optimizer=SGD(rate, schedule=Cosine(warmup=0.1), weight_decay=0.0 if freeze else 5e-4, nesterov=True),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
