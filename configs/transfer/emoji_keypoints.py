"""Keypoints of emoji in a style that pretraining never saw, in minutes on two CPU cores.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl train configs/transfer/emoji_keypoints.py:init=runs/emoji --workdir runs/keypoints
    bvl train configs/transfer/emoji_keypoints.py --workdir runs/keypoints_from_scratch

Each object has four keypoints: the top, bottom, left and right of its drawing, which is turned, mirrored and partly
covered. Pretrained and from scratch take the same steps. ``freeze=true`` trains only the head. Needs the extra
[openmoji].
"""

from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.keypoints import emoji_top_down


def get_config(init: str | None = None, images: int = 2_000, classes: int = 20, size: int = 96, steps: int = 600,
               batch_size: int = 32, freeze: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, whose backbone is used; None: from scratch, with the backbone of configs/pretrain/emoji.py.
      images: scenes to generate.
      classes: size of the vocabulary: the most frequent emoji.
      size: width and height of the scenes in pixels; crops have 64.
      steps: length of the run.
      batch_size: images per step: crops of one object each.
      freeze: freeze the backbone.
      seed: seed of initialization, data order and augmentation.
    """
    return emoji_top_down(init=init, images=images, classes=classes, size=size, steps=steps, batch_size=batch_size,
                          freeze=freeze, seed=seed)
