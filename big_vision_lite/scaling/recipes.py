"""Recipes that small studies share: a world of generated scenes in which pretraining and transfer fit two cores."""

from __future__ import annotations

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation import Curation
from big_vision_lite.data.emoji_scenes import EmojiScenes, vocabulary
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import PadCrop, Squash
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.scaling.study import OF_A_RUN, Run
from big_vision_lite.training.optimizers import SGD, AdamW
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer

SIZE = 32
"""Pixels of the generated scenes."""
CLASSES = 100
"""Classes of pretraining, the most frequent ones; `new_classes` are the next."""
SCENES = 50_000
"""Scenes that are composed once; subsets are taken from them."""


def new_classes(count: int = 20) -> tuple[str, ...]:
    """Classes that pretraining never names, for transfer."""
    return vocabulary(CLASSES + count).names[CLASSES:]


def small_resnet(depth: int = 10, width: float = 0.25) -> ResNet:
    """The network of small studies. BatchNorm over groups of 32, the paper's worker batch."""
    return ResNet(depth, width=width, norm=BatchNorm(group=32), stem="half")


def scenes_pretraining(*, steps: int, curate: tuple[Curation, ...] = (), scenes: int = SCENES, depth: int = 10,
                       width: float = 0.25, batch_size: int = 128, seed: int = 0, classes: int = CLASSES,
                       held_out: int = 2_000, probes: bool = True) -> Experiment:
    """Learn which objects are in generated scenes, many labels an image, as the paper's pretraining with its logistic
    loss; AdamW, for a few hundred steps are too few for the paper's RMSProp.

    Args:
      curate: what of the ``scenes`` is used, and with which labels; evaluation has the right labels.
      held_out: scenes to score on.
      probes: whether to ask the features for classes that pretraining never named, by few shots.
    """
    def source(split: str, images: int) -> EmojiScenes:
        return EmojiScenes(split, images, size=SIZE, classes=classes, objects=(1, 2), zipf=0.5, prepared=True)

    new = {split: Input(new_scenes(split, images), Squash(SIZE), batch_size)
           for split, images in (("train", 2_000), ("test", 1_000))}
    return Experiment(
        train=Input(source("train", scenes), PadCrop(SIZE, pad=SIZE // 8), batch_size, curate=curate),
        evals={"validation": Input(source("validation", held_out), Squash(SIZE), batch_size)},
        backbone=small_resnet(depth, width),
        head=Classification("sigmoid"),
        optimizer=AdamW(3e-3 * (batch_size / 64) ** 0.5, schedule=Cosine(warmup=steps // 20), weight_decay=0.02),
        probes={"new_classes": Probe(new["train"], new["test"], shots=(10,))} if probes else {},
        steps=steps,
        seed=seed,
        log_every=50,
    )


def new_scenes(split: str, images: int) -> EmojiScenes:
    """Scenes of one object each, of `new_classes`."""
    return EmojiScenes(split, images, size=SIZE, classes=new_classes(), objects=(1, 1), zipf=0.0, prepared=True)


def scenes_transfer(init: str | None, *, freeze: bool = False, images: int = 1_000, steps: int = 150, depth: int = 10,
                    width: float = 0.25, batch_size: int = 64, seed: int = 0) -> Experiment:
    """Learn `new_classes` from few scenes, by SGD with the rates usual for fine-tuning.

    Args:
      init: as `Transfer.init`; None: from scratch.
      freeze: learn the head alone.
    """
    return Experiment(
        train=Input(new_scenes("train", images), PadCrop(SIZE, pad=SIZE // 8), batch_size),
        evals={"test": Input(new_scenes("test", 1_000), Squash(SIZE), batch_size)},
        backbone=small_resnet(depth, width),
        head=Classification("softmax"),
        optimizer=SGD((0.5 if freeze else 0.05) * batch_size / 64, schedule=Cosine(warmup=steps // 10),
                      weight_decay=0.0 if freeze else 1e-4),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )


def transfers(pretraining: Run, kinds: tuple[str, ...] = ("tuned", "frozen"), **more: int) -> tuple[Run, ...]:
    """What follows a pretraining on scenes: a run of each kind on `new_classes`."""
    experiment = pretraining.experiment
    return tuple(
        Run(f"{kind},{pretraining.name}",
            scenes_transfer(OF_A_RUN + pretraining.name, freeze=kind == "frozen", depth=experiment.backbone.depth,
                            width=experiment.backbone.width, seed=experiment.seed, **more))
        for kind in kinds)
