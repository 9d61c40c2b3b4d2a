"""Can the detector learn a few photos by heart? A check of data and code on COCO's own files, in minutes on two cores.

    bvl train configs/transfer/coco_check_detection.py:root=/coco --workdir runs/coco_check
    bvl predict runs/coco_check /coco/train2017/*.jpg

Sixteen photos, always in the same view, scored on themselves: AP50 of 0.95 or more says that
boxes, classes, targets, losses and scores fit together. ``split=val2017`` scores photos that were not learned, for
which 16 are of course far too few. docs/results/dense_transfer.md has the measured figure.
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.coco_json import CocoJson
from big_vision_lite.data.joint_transforms import Fit
from big_vision_lite.data.pipeline import Input
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.recipes import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, images: int = 16, split: str = "train2017", size: int = 352,
               steps: int = 600, batch_size: int = 4, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder with annotations/instances_train2017.json and train2017/.
      init: a run, whose backbone is taken; None: from scratch, with the backbone of configs/pretrain/emoji.py.
      images: how many photos are learned.
      split: train2017 scores the photos that are learned.
      size: pixels of the input's sides, into which a photo just fits.
    """
    view = Fit(size, size, ((size, size),), random=False, masks=False)

    def photos(split: str) -> Input:
        source = CocoJson(f"{root}/annotations/instances_{split}.json", f"{root}/{split}")
        return Input(source, view, batch_size, curate=curated_by(subset=images if split == "train2017" else None))

    backbone = whole_batch(backbone_of(init) or ResNet(10, width=0.5))
    # COCO's objects are as thin as 1 to 10, and a shape that no anchor is near is learned last.
    head = FasterRCNN(FPN(channels=96, width=384, anchor_sizes=(12, 24, 48, 96, 192), candidates=(600, 400),
                          proposals=(300, 200), rois=128), aspects=(0.2, 0.5, 1.0, 2.0, 5.0), metric="AP50")
    return Experiment(
        train=photos("train2017"),
        evals={split: photos(split)},
        backbone=backbone,
        head=head,
        optimizer=AdamW(1e-3, schedule=Cosine(warmup=steps // 20), weight_decay=1e-4, clip=10.0),
        transfer=Transfer(init),
        steps=steps,
        seed=seed,
        log_every=20,
        eval_every=max(1, steps // 4),
    )
