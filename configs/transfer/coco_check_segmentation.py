"""Semantic segmentation of a few photos of COCO, 80 things and 53 kinds of stuff; in minutes on two cores.

    bvl train configs/transfer/coco_check_segmentation.py:root=/coco,subset=100,init=runs/emoji --workdir runs/masks
    bvl train configs/transfer/coco_check_segmentation.py:root=/coco,eval_split=train2017,subset=16,batch_size=2 \\
        --steps 1200 --workdir runs/overfit

Evaluated on val2017 it shows what so few photos are worth. Evaluated on the photos that were learned
(``eval_split=train2017``) it overfits on purpose, as a check: a mIoU of 0.9 or more says that data, losses and scores
fit together. docs/results/dense_transfer.md has the measured values.
"""

from typing import Literal

from big_vision_lite.backbones.norm import BatchNorm, GroupNorm, whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.coco_panoptic import COCO_PANOPTIC
from big_vision_lite.data.sources.mask_folder import MaskFolder
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Poly
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, subset: int | None = None,
               eval_split: Literal["train2017", "val2017"] = "val2017", size: int = 256, steps: int = 600,
               batch_size: int = 4, freeze: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder with photos in train2017/ and val2017/, and masks of the same names in stuff/train2017/ and
        stuff/val2017/: PNGs whose values are COCO's panoptic category ids (0: not annotated).
      init: a run, whose backbone is used; None: from scratch, with the backbone of configs/pretrain/emoji.py.
      subset: learn from this many photos; None: all.
      eval_split: split to evaluate on; train2017: the photos that are learned, always in the same view. Otherwise they
        are learned at random scales.
      size: width and height of the input in pixels, into which a photo is fitted.
      steps: length of the run.
      batch_size: images per step.
      freeze: train only the decoder.
      seed: seed of initialization, data order and augmentation.
    """
    fitted = ResizeToFit(size, size, ((size, size),), random=False)

    def photos(split: str, transform: ResizeToFit | ScaleJitter, subset: int | None) -> Input:
        source = MaskFolder(root, split, images="{split}", masks="stuff/{split}", unpaired="skip",
                            classes=tuple(COCO_PANOPTIC.values()), values=tuple(COCO_PANOPTIC), background=None,
                            void=(0, 255))
        return Input(source, transform, batch_size, curate=curated_by(subset=subset))

    overfit = eval_split == "train2017"
    # BatchNorm's running statistics differ from those of the few images of a step.
    norm = GroupNorm(8) if overfit else BatchNorm()
    view = fitted if overfit else ScaleJitter(size, scale=(0.75, 1.5), of="fit", augment=(Photometric(),))
    decoder = DeepLabV3Plus((1, 2, 3), channels=64, low_level_channels=32, norm=norm, dropout=0.0 if overfit else 0.1)
    return Experiment(
        train=photos("train2017", view, subset),
        evals={eval_split: photos(eval_split, fitted, subset if overfit else None)},
        backbone=dilated(whole_batch(backbone_of(init) or ResNet(10, width=0.5, norm=norm)), 16),
        # Without hard-pixel mining a fork beside a table is never learned.
        head=Segmentation(decoder, size, ohem_fraction=0.2 if overfit else 1.0),
        optimizer=AdamW(2e-3, Poly(warmup=0.05), weight_decay=1e-4 if overfit else 0.02),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=20,
        eval_every=1 / 4,
    )
