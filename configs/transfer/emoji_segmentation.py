"""Semantic segmentation of emoji scenes in a style that pretraining never saw, in minutes on two CPU cores.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl train configs/transfer/emoji_segmentation.py:init=runs/emoji,subset=200 --workdir runs/masks
    bvl train configs/transfer/emoji_segmentation.py:subset=200 --workdir runs/masks_from_scratch

``subset`` says how many scenes have masks. Pretrained and from scratch take the same steps. ``freeze=true`` trains only
the decoder. docs/results/dense_transfer.md has measured values. Needs the extra [openmoji].
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Poly
from big_vision_lite.training.transfer import Transfer


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
    def scenes(split: str, count: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 3), zipf=0.5)

    decoder = DeepLabV3Plus((1, 2, 3), channels=64, low_level_channels=16)
    view = ResizeToFit(size, size, ((size, size),), random=False)
    return Experiment(
        train=Input(scenes("train", images), ScaleJitter(size, scale=(0.75, 1.5)), batch_size,
                    curate=curated_by(subset=subset)),
        evals={"test": Input(scenes("test", 500), view, batch_size)},
        backbone=dilated(whole_batch(backbone_of(init) or ResNet(10, width=0.5)), 8),
        head=Segmentation(decoder, size, ohem_fraction=ohem_fraction),
        optimizer=AdamW(2e-3, Poly(warmup=0.05), weight_decay=0.02),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
