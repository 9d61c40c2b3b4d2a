"""Pretrain on generated scenes of emoji, then probe the features on another drawing style and on unseen classes.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl probe runs/emoji            # repeat the probes
    bvl probe runs/emoji --random   # the baseline: an untrained network

Of 824 classes 50, spread over all categories, are left out of pretraining. The probes use scenes of one object each,
drawn in the other style (openmoji): of those 50 classes ("unseen") and of 50 others ("seen"). Measured values
and times are in docs/results/small_runs.md. Needs the extra [openmoji].
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.emoji import emoji_pretraining


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
    backbone = ResNet(depth, width=width, norm=BatchNorm(group=min(32, batch_size)))
    return emoji_pretraining(backbone, images=images, subset=subset, size=size, steps=steps, batch_size=batch_size,
                             probes=probes, eval_every=1 / 2, seed=seed)
