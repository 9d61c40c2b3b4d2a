"""Overfit the detector to a few photos of COCO on purpose, as a check of data and code; in minutes on two cores.

    bvl train configs/transfer/coco_check_detection.py:root=/coco --workdir runs/coco_check
    bvl predict runs/coco_check /coco/train2017/*.jpg

Sixteen photos, always in the same view, evaluated on themselves: an AP50 of 0.95 or more says that boxes, classes,
targets, losses and scores fit together. ``eval_split=val2017`` evaluates on other photos, for which 16 are of course
far too few. docs/results/dense_transfer.md has the measured value.
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, subset: int = 16, eval_split: str = "train2017", size: int = 352,
               steps: int = 600, batch_size: int = 4, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder with annotations/instances_train2017.json and train2017/.
      init: a run, whose backbone is used; None: from scratch, with the backbone of configs/pretrain/emoji.py.
      subset: learn from this many photos.
      eval_split: split to evaluate on; train2017: the photos that are learned.
      size: width and height of the input in pixels, into which a photo is fitted.
      steps: length of the run.
      batch_size: images per step.
      seed: seed of initialization, data order and augmentation.
    """
    view = ResizeToFit(size, size, ((size, size),), random=False, masks=False)

    def photos(split: str) -> Input:
        source = CocoJson(f"{root}/annotations/instances_{split}.json", f"{root}/{split}")
        return Input(source, view, batch_size, curate=curated_by(subset=subset if split == "train2017" else None))

    variant = FPN(channels=96, width=384, anchor_sizes=(12, 24, 48, 96, 192), pre_nms_topk=(600, 400),
                  post_nms_topk=(300, 200), rois_per_image=128)
    return Experiment(
        train=photos("train2017"),
        evals={eval_split: photos(eval_split)},
        backbone=whole_batch(backbone_of(init) or ResNet(10, width=0.5)),
        # COCO has objects of 1 to 10, and shapes far from every anchor are learned last.
        head=FasterRCNN(variant, aspect_ratios=(0.2, 0.5, 1.0, 2.0, 5.0), metric="AP50"),
        optimizer=AdamW(1e-3, schedule=Cosine(warmup=0.05), weight_decay=1e-4, grad_clip_norm=10.0),
        transfer=Transfer(init),
        steps=steps,
        seed=seed,
        log_every=20,
        eval_every=1 / 4,
    )
