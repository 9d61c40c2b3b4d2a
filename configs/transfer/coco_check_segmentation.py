"""Semantic segmentation of a few hundred of COCO's photos: 80 things and 53 stuffs, in minutes on two cores.

    bvl train configs/transfer/coco_check_segmentation.py:root=/coco,images=16,split=train2017,batch_size=2,steps=1200 \
        --workdir runs/by_heart
    bvl train configs/transfer/coco_check_segmentation.py:root=/coco,images=100,init=runs/emoji --workdir runs/masks

``root`` holds train2017/ and val2017/ with photos, and stuff/train2017/ and stuff/val2017/ with a PNG of the same name
for each, whose values are COCO's panoptic category ids (0: nothing annotated). Scored on the photos that were learned
(``split=train2017``), it asks whether data, losses and scores fit together: mIoU of 0.9 or more says so. Scored on
val2017 it asks what so few photos are worth. docs/results/dense_transfer.md has what was measured.
"""

from typing import Literal

from big_vision_lite.backbones.norm import BatchNorm, GroupNorm, whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.coco_panoptic import COCO_PANOPTIC
from big_vision_lite.data.joint_transforms import Fit, ScaleJitter
from big_vision_lite.data.mask_folder import MaskFolder
from big_vision_lite.data.pipeline import Input
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.recipes import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Poly
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, images: int | None = None,
               split: Literal["train2017", "val2017"] = "val2017", size: int = 256, steps: int = 600,
               batch_size: int = 4, freeze: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, whose backbone is taken; None: start at random, with the backbone of configs/pretrain/emoji.py.
      images: learn from so many; None for all.
      split: what to score on. Photos that are scored again are learned in one view, others at random scales.
      size: pixels of the input's sides, into which a photo just fits.
      freeze: learn the decoder alone.
    """
    whole = Fit(size, size, ((size, size),), random=False)

    def photos(split: str, transform: Fit | ScaleJitter, subset: int | None) -> Input:
        source = MaskFolder(root, split, images="{split}", masks="stuff/{split}", unpaired="skip",
                            classes=tuple(COCO_PANOPTIC.values()), values=tuple(COCO_PANOPTIC), background=None,
                            void=(0, 255))
        return Input(source, transform, batch_size, curate=curated_by(subset=subset))

    by_heart = split == "train2017"
    # The running statistics of BatchNorm are not those of the few images that a step learns from.
    norm = GroupNorm(8) if by_heart else BatchNorm()
    view = whole if by_heart else ScaleJitter(size, scale=(0.75, 1.5), of="fit", photometric=True)
    return Experiment(
        train=photos("train2017", view, images),
        evals={split: photos(split, whole, images if by_heart else None)},
        backbone=dilated(whole_batch(backbone_of(init) or ResNet(10, width=0.5, norm=norm)), 16),
        head=Segmentation(DeepLabV3Plus((1, 2, 3), channels=64, low_level_channels=32, norm=norm,
                                        dropout=0.0 if by_heart else 0.1), size,
                          hardest=0.2 if by_heart else 1.0),  # else a fork is not learned beside a table
        optimizer=AdamW(2e-3, Poly(warmup=steps // 20), weight_decay=1e-4 if by_heart else 0.02),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=20,
        eval_every=max(1, steps // 4),
    )
