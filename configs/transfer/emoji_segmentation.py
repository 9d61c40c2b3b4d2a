"""Semantic segmentation of emoji scenes in the style that pretraining never saw, in minutes on two CPU cores.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl train configs/transfer/emoji_segmentation.py:init=runs/emoji,images=200 --workdir runs/masks
    bvl train configs/transfer/emoji_segmentation.py:images=200 --workdir runs/masks_from_scratch

``images`` is how many scenes have masks: 2,000, 200 or 20. Both ways of starting take the same steps. ``freeze=true``
learns the decoder alone. Needs the extra [openmoji].
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.joint_transforms import Fit, ScaleJitter
from big_vision_lite.data.pipeline import Input
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Poly
from big_vision_lite.training.transfer import Transfer


def get_config(init: str | None = None, images: int = 2_000, classes: int = 20, size: int = 64, steps: int = 500,
               batch_size: int = 32, hardest: float = 0.2, freeze: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, whose backbone is taken; None: start at random, with the backbone of configs/pretrain/emoji.py.
      images: scenes to learn from; fewer are the first ones of more.
      classes: how many emoji are told apart, the most frequent first.
      size: pixels of the scenes' sides and of the network's input.
      hardest: share of an image's pixels to learn from, or most of them are background that is soon known.
    """
    def scenes(split: str, count: int) -> EmojiScenes:
        return EmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 3), zipf=0.5,
                           prepared=True)

    return Experiment(
        train=Input(scenes("train", images), ScaleJitter(size, scale=(0.75, 1.5)), batch_size),
        evals={"test": Input(scenes("test", 500), Fit(size, size, ((size, size),), random=False), batch_size)},
        backbone=dilated(whole_batch(backbone_of(init) or ResNet(10, width=0.5)), 8),
        head=Segmentation(DeepLabV3Plus((1, 2, 3), channels=64, low_level_channels=16), size, hardest=hardest),
        optimizer=AdamW(2e-3, Poly(warmup=steps // 20), weight_decay=0.02),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
