"""Find blood cells: a small Faster R-CNN on a VOC tree of a few hundred microscope images (BCCD), on two CPU cores.

    bvl train configs/transfer/bccd_detection.py:root=/bccd,init=runs/emoji --workdir runs/bccd
    bvl evaluate runs/bccd --split test    # with --step N for the checkpoint that val prefers
    bvl predict runs/bccd /bccd/JPEGImages/BloodImage_00007.jpg

Any VOC tree with lists train, val and test in ImageSets/Main works. Scored on val while it trains, and each of those
checkpoints is kept; test is for the end. README has the measured figures.
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.joint_transforms import Fit
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.voc_tree import VocTree
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, steps: int = 1500, short: int = 240, long: int = 320,
               batch_size: int = 8, freeze: bool = False, learning_rate: float = 1e-3, seed: int = 0) -> Experiment:
    """
    Args:
      root: a VOC tree.
      init: a run, whose backbone is taken; None: from scratch, with the backbone of configs/pretrain/emoji.py.
      short, long: pixels of the image's sides.
      freeze: the backbone stays as it is, its statistics too.
    """
    # Batches are too small for groups: statistics are those of the whole batch.
    backbone = whole_batch(backbone_of(init) or ResNet(10, width=0.5))
    sides = tuple(round(short * share / 16) * 16 for share in (0.8, 0.9, 1.0))
    bucket = ((short, long),)
    head = FasterRCNN(FPN(channels=96, width=256, anchor_sizes=(16, 32, 64, 128, 256), candidates=(600, 300),
                          proposals=(300, 150), rois=96), metric="VOC_AP50")
    evaluate = Fit(short, long, bucket, random=False)
    return Experiment(
        train=Input(VocTree(root, "train"), Fit(sides, long, bucket, photometric=True), batch_size),
        evals={"val": Input(VocTree(root, "val"), evaluate, batch_size)},
        backbone=backbone,
        head=head,
        optimizer=AdamW(learning_rate, schedule=Cosine(warmup=steps // 20), weight_decay=0.02, clip=10.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=20,
        eval_every=max(1, steps // 5),
        save_every=max(1, steps // 5),
        keep=5,
    )
