"""Find blood cells: a small Faster R-CNN on a VOC tree of a few hundred microscope images (BCCD), on two CPU cores.

    bvl train configs/transfer/bccd_detection.py:root=/bccd,init=runs/emoji --workdir runs/bccd
    bvl evaluate runs/bccd --split test    # the last one; --checkpoint best: the best on val
    bvl predict runs/bccd /bccd/JPEGImages/BloodImage_00007.jpg

Any VOC tree with the lists train, val and test in ImageSets/Main works. Evaluated five times on val, and each of these
checkpoints is kept; test is for the end. docs/results/dense_transfer.md has the measured values and times.
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, steps: int = 1500, min_size: int = 240, max_size: int = 320,
               batch_size: int = 8, freeze: bool = False, learning_rate: float = 1e-3, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of the VOC tree.
      init: a run, whose backbone is used; None: from scratch, with the backbone of configs/pretrain/emoji.py.
      steps: length of the run.
      min_size: short side of the images in pixels.
      max_size: long side of the images in pixels.
      batch_size: images per step.
      freeze: freeze the backbone, its BatchNorm statistics included.
      learning_rate: peak rate.
      seed: seed of initialization, data order and augmentation.
    """
    sizes = tuple(round(min_size * share / 16) * 16 for share in (0.8, 0.9, 1.0))
    bucket = ((min_size, max_size),)
    head = FasterRCNN(FPN(channels=96, width=256, anchor_sizes=(16, 32, 64, 128, 256), pre_nms_topk=(600, 300),
                          post_nms_topk=(300, 150), rois_per_image=96), metric="VOC_AP50")
    view = ResizeToFit(min_size, max_size, bucket, random=False)
    return Experiment(
        train=Input(VocTree(root, "train"), ResizeToFit(sizes, max_size, bucket, augment=(Photometric(),)), batch_size),
        evals={"val": Input(VocTree(root, "val"), view, batch_size)},
        # Batches are too small for groups: BatchNorm uses the whole batch.
        backbone=whole_batch(backbone_of(init) or ResNet(10, width=0.5)),
        head=head,
        optimizer=AdamW(learning_rate, schedule=Cosine(warmup=0.05), weight_decay=0.02, grad_clip_norm=10.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=20,
        eval_every=1 / 5,
        save_every=1 / 5,
        max_checkpoints=5,
    )
