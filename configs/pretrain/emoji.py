"""Pretrain on composed scenes of emoji, and ask the features about another style and about classes never seen.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl probe runs/emoji            # the same questions again
    bvl probe runs/emoji --random   # of an untrained network: what the figures are to be compared with

Of 824 classes 50, spread over all categories, are kept from pretraining. The probes take scenes of one object each,
drawn in the other style (openmoji): of those 50 classes ("unseen") and of 50 others ("seen"). README has the measured
figures. Needs the extra [openmoji].
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.emoji_scenes import EmojiScenes, vocabulary
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import InceptionCrop, Squash
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.schedules import Cosine


def get_config(images: int = 100_000, size: int = 64, depth: int = 10, width: float = 0.5, steps: int = 1600,
               batch_size: int = 64, probes: bool = True, seed: int = 0) -> Experiment:
    """
    Args:
      images: scenes to learn from; fewer are the first ones of more.
      size: pixels of the scenes' sides and of the network's input.
      probes: also ask about the other style.
    """
    every = vocabulary().names
    unseen, seen = every[::16][:50], every[8::16][:50]
    known = tuple(name for name in every if name not in unseen)

    def scenes(split: str, count: int) -> EmojiScenes:
        return EmojiScenes(split, count, size=size, classes=known, objects=(1, 3), zipf=0.5, prepared=True)

    def other_style(split: str, count: int, classes: tuple[str, ...]) -> Input:
        source = EmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 1), zipf=0.0)
        return Input(source, Squash(size), batch_size)

    asked = {name: Probe(other_style("train", 5_000, classes), other_style("test", 2_000, classes),
                         kinds=("few_shot", "linear"), shots=(1, 5, 10, 25))
             for name, classes in (("unseen", unseen), ("seen", seen))}
    return Experiment(
        train=Input(scenes("train", images), InceptionCrop(size, area=(0.5, 1.0)), batch_size),
        evals={"validation": Input(scenes("validation", 2_000), Squash(size), batch_size)},
        backbone=ResNet(depth, width=width, norm=BatchNorm(group=min(32, batch_size))),
        head=Classification("sigmoid"),
        optimizer=AdamW(3e-3 * (batch_size / 64) ** 0.5, schedule=Cosine(warmup=steps // 20), weight_decay=0.02),
        probes=asked if probes else {},
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=max(1, steps // 2),
    )
