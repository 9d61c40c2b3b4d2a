"""Detection of emoji in a style that pretraining never saw, in minutes on two CPU cores.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl train configs/transfer/emoji_detection.py:init=runs/emoji --workdir runs/boxes
    bvl train configs/transfer/emoji_detection.py --workdir runs/boxes_from_scratch

Pretrained and from scratch take the same steps. ``freeze=true`` trains only the detector, on frozen features.
docs/results/dense_transfer.md has the measured values. Needs the extra [openmoji].
"""

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.emoji import scenes_detection


def get_config(init: str | None = None, images: int = 2_000, subset: int | None = None, classes: int = 20,
               size: int = 96, steps: int = 600, batch_size: int = 16, freeze: bool = False,
               seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, whose backbone is used; None: from scratch, with the backbone of configs/pretrain/emoji.py.
      images: scenes to generate.
      subset: learn from this many of them; None: all.
      classes: size of the vocabulary: the most frequent emoji.
      size: width and height of the scenes and of the network's input in pixels.
      steps: length of the run.
      batch_size: images per step.
      freeze: freeze the backbone.
      seed: seed of initialization, data order and augmentation.
    """
    return scenes_detection(init, backbone=backbone_of(init) or ResNet(10, width=0.5), images=images, subset=subset,
                            classes=classes, size=size, steps=steps, batch_size=batch_size, freeze=freeze, seed=seed)
