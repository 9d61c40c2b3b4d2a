"""Semantic segmentation of emoji scenes in a style that pretraining never saw, in minutes on two CPU cores.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl train configs/transfer/emoji_segmentation.py:init=runs/emoji,subset=200 --workdir runs/masks
    bvl train configs/transfer/emoji_segmentation.py:subset=200 --workdir runs/masks_from_scratch

``subset`` says how many scenes have masks. Pretrained and from scratch take the same steps. ``freeze=true`` trains only
the decoder. docs/results/dense_transfer.md has measured values. Needs the extra [openmoji].
"""

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.emoji import scenes_segmentation


def get_config(init: str | None = None, images: int = 2_000, subset: int | None = None, classes: int = 20,
               size: int = 64, steps: int = 500, batch_size: int = 32, ohem_fraction: float = 0.2, freeze: bool = False,
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
      ohem_fraction: share of an image's pixels to learn from, the hardest ones; most pixels are easy background.
      freeze: freeze the backbone.
      seed: seed of initialization, data order and augmentation.
    """
    return scenes_segmentation(init, backbone=backbone_of(init) or ResNet(10, width=0.5), images=images, subset=subset,
                               classes=classes, size=size, steps=steps, batch_size=batch_size,
                               ohem_fraction=ohem_fraction, freeze=freeze, seed=seed)
