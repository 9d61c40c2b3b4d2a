"""Detection of emoji in a style that pretraining never saw, in minutes on two CPU cores.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl train configs/transfer/emoji_detection.py:init=runs/emoji --workdir runs/boxes
    bvl train configs/transfer/emoji_detection.py --workdir runs/boxes_from_scratch

Pretrained and from scratch take the same steps. ``freeze=true`` trains only the detector, on frozen features.
docs/results/dense_transfer.md has the measured values. Needs the extra [openmoji].
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer


def get_config(init: str | None = None, images: int = 2_000, subset: int | None = None, classes: int = 20,
               size: int = 96, steps: int = 600, batch_size: int = 16, freeze: bool = False,
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
      freeze: freeze the backbone.
      seed: seed of initialization, data order and augmentation.
    """
    def scenes(split: str, count: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 4), zipf=0.5)

    head = FasterRCNN(FPN(channels=64, width=256, anchor_sizes=(12, 20, 32, 52, 84), pre_nms_topk=(300, 200),
                          post_nms_topk=(150, 100), rois_per_image=48), max_boxes=16, metric="AP50")
    jitter = ScaleJitter(size, scale=(0.7, 1.4), of="fit", min_visibility=0.3, masks=False)
    view = ResizeToFit(size, size, ((size, size),), random=False, masks=False)
    return Experiment(
        train=Input(scenes("train", images), jitter, batch_size, curate=curated_by(subset=subset)),
        evals={"test": Input(scenes("test", 500), view, batch_size)},
        # Batches are too small for groups: BatchNorm uses the whole batch.
        backbone=whole_batch(backbone_of(init) or ResNet(10, width=0.5)),
        head=head,
        optimizer=AdamW(1e-3, schedule=Cosine(warmup=0.05), weight_decay=0.02, grad_clip_norm=10.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
