"""Pretrain on generated scenes of emoji, then probe the features on another drawing style and on unseen classes.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl probe runs/emoji            # repeat the probes
    bvl probe runs/emoji --random   # the baseline: an untrained network

Of 824 classes 50, spread over all categories, are left out of pretraining. The probes use scenes of one object each,
drawn in the other style (openmoji): of those 50 classes ("unseen") and of 50 others ("seen"). README has the measured
values and times. Needs the extra [openmoji].
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes, vocabulary
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.image import RandomResizedCrop, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.schedules import Cosine


def get_config(images: int = 100_000, subset: int | None = None, size: int = 64, depth: int = 10, width: float = 0.5,
               steps: int = 1600, batch_size: int = 64, probes: bool = True, seed: int = 0) -> Experiment:
    """
    Args:
      images: scenes to generate.
      subset: learn from this many of them; None: all.
      size: width and height of the scenes and of the network's input in pixels.
      depth: layers of the ResNet.
      width: width factor of the ResNet; 1 is the standard width.
      steps: length of the run.
      batch_size: images per step.
      probes: whether to probe the features with each evaluation.
      seed: seed of initialization, data order and augmentation.
    """
    names = vocabulary().names
    unseen, seen = names[::16][:50], names[8::16][:50]
    pretrained = tuple(name for name in names if name not in unseen)

    def scenes(split: str, count: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, count, size=size, classes=pretrained, objects=(1, 3), zipf=0.5)

    def other_style(split: str, count: int, classes: tuple[str, ...]) -> Input:
        source = EmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 1), zipf=0.0)
        return Input(source, Resize(size), batch_size)

    style_probes = {name: Probe(other_style("train", 5_000, classes), other_style("test", 2_000, classes),
                                kinds=("few_shot", "linear"), shots=(1, 5, 10, 25))
                    for name, classes in (("unseen", unseen), ("seen", seen))}
    return Experiment(
        train=Input(scenes("train", images), RandomResizedCrop(size, area=(0.5, 1.0)), batch_size,
                    curate=curated_by(subset=subset)),
        evals={"validation": Input(scenes("validation", 2_000), Resize(size), batch_size)},
        backbone=ResNet(depth, width=width, norm=BatchNorm(group=min(32, batch_size))),
        head=Classification("sigmoid"),
        optimizer=AdamW(3e-3 * (batch_size / 64) ** 0.5, schedule=Cosine(warmup=0.05), weight_decay=0.02),
        probes=style_probes if probes else {},
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=1 / 2,
    )
