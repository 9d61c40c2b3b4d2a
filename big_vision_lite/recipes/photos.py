"""Recipes for folders of small photos, one folder per class: pretraining on one, transfer to another."""

from __future__ import annotations

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation.steps import Curation, NestedSubset, ParentLabels
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine, Schedule
from big_vision_lite.training.transfer import Transfer

SIZE = 32
"""Width and height of the photos in pixels."""


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
