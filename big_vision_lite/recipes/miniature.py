"""Recipes of small studies: pretraining and transfer on generated scenes, in minutes on two cores."""

from __future__ import annotations

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation.steps import Curation
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import vocabulary
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Run
from big_vision_lite.training.optimizers import SGD, AdamW
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.schedules import Cosine, Schedule
from big_vision_lite.training.transfer import Transfer

SIZE = 32
"""Width and height of the scenes in pixels."""
CLASSES = 100
"""Classes of pretraining: the most frequent ones. `new_classes` are the next."""
IMAGES = 50_000
"""Scenes that are generated; subsets are taken from them."""


def new_classes(count: int = 20) -> tuple[str, ...]:
    """Classes for transfer that pretraining has no labels of."""
    return vocabulary(CLASSES + count).names[CLASSES:]


def small_resnet(depth: int = 10, width: float = 0.25) -> ResNet:
    """The network of small studies. BatchNorm over groups of 32, the paper's worker batch."""
    return ResNet(depth, width=width, norm=BatchNorm(group=32), stem="half")


def scenes_pretraining(*, steps: int, curate: tuple[Curation, ...] = (), images: int = IMAGES, depth: int = 10,
                       width: float = 0.25, batch_size: int = 128, seed: int = 0, classes: int = CLASSES,
                       zipf: float = 0.5, rate: float | None = None, schedule: Schedule | None = None,
                       eval_images: int = 2_000, probes: bool = True) -> Experiment:
    """Multi-label classification of generated scenes with the logistic loss, as the paper's pretraining; with AdamW,
    because a few hundred steps are too few for the paper's RMSProp.

    Args:
      curate: which of the ``images`` scenes are learned, and with which labels. Evaluation has the correct labels.
      zipf: exponent of the frequencies of the classes.
      rate: peak of the learning rate; by default 3e-3 for 64 images, and in proportion to the root of the batch.
      schedule: of the rate; by default a cosine.
      probes: add few-shot probes of the features on `new_classes`.
    """
    def source(split: str, images: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, images, size=SIZE, classes=classes, objects=(1, 2), zipf=zipf)

    few_shot = Probe(Input(new_scenes("train", 2_000), Resize(SIZE), batch_size),
                     Input(new_scenes("test", 1_000), Resize(SIZE), batch_size), shots=(10,))
    return Experiment(
        train=Input(source("train", images), RandomCropPadded(SIZE, pad=SIZE // 8), batch_size, curate=curate,
                    resident="host"),
        evals={"validation": Input(source("validation", eval_images), Resize(SIZE), batch_size)},
        backbone=small_resnet(depth, width),
        head=Classification("sigmoid"),
        optimizer=AdamW(rate or 3e-3 * (batch_size / 64) ** 0.5, schedule=schedule or Cosine(warmup=0.05),
                        weight_decay=0.02),
        probes={"new_classes": few_shot} if probes else {},
        steps=steps,
        seed=seed,
        log_every=50,
    )


def new_scenes(split: str, images: int) -> PreparedEmojiScenes:
    """Scenes of one object each, of `new_classes`."""
    return PreparedEmojiScenes(split, images, size=SIZE, classes=new_classes(), objects=(1, 1), zipf=0.0)


def scenes_transfer(init: str | None, *, freeze: bool = False, steps: int = 150, depth: int = 10, width: float = 0.25,
                    seed: int = 0) -> Experiment:
    """Classify `new_classes` after learning from 1,000 scenes, by SGD with rates usual for fine-tuning.

    Args:
      init: see `Transfer.init`; None: from scratch.
      freeze: train only the head.
    """
    return Experiment(
        train=Input(new_scenes("train", 1_000), RandomCropPadded(SIZE, pad=SIZE // 8), 64, resident="host"),
        evals={"test": Input(new_scenes("test", 1_000), Resize(SIZE), 64)},
        backbone=small_resnet(depth, width),
        head=Classification("softmax"),
        optimizer=SGD(0.5 if freeze else 0.05, schedule=Cosine(warmup=0.1), weight_decay=0.0 if freeze else 1e-4),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )


def transfers(pretraining: Run, kinds: tuple[str, ...] = ("tuned", "frozen")) -> tuple[Run, ...]:
    """The runs that follow a pretraining on scenes: one of each kind on `new_classes`."""
    experiment = pretraining.experiment
    return tuple(
        Run(f"{kind},{pretraining.name}",
            scenes_transfer(RUN_PREFIX + pretraining.name, freeze=kind == "frozen", depth=experiment.backbone.depth,
                            width=experiment.backbone.width, seed=experiment.seed))
        for kind in kinds)
