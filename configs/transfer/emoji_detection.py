"""Detection of emoji in the style that pretraining never saw, in minutes on two CPU cores.

    bvl train configs/pretrain/emoji.py --workdir runs/emoji
    bvl train configs/transfer/emoji_detection.py:init=runs/emoji --workdir runs/boxes
    bvl train configs/transfer/emoji_detection.py --workdir runs/boxes_from_scratch

Both ways of starting take the same steps. ``freeze=true`` learns the detector alone, on fixed features. Needs the extra
[openmoji].
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.joint_transforms import Fit, ScaleJitter
from big_vision_lite.data.pipeline import Input
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer


def get_config(init: str | None = None, images: int = 2_000, classes: int = 20, size: int = 96, steps: int = 600,
               batch_size: int = 16, freeze: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, whose backbone is taken; None: start at random, with the backbone of configs/pretrain/emoji.py.
      images: scenes to learn from; fewer are the first ones of more.
      classes: how many emoji are told apart, the most frequent first.
      size: pixels of the scenes' sides and of the network's input.
    """
    def scenes(split: str, count: int) -> EmojiScenes:
        return EmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 4), zipf=0.5,
                           prepared=True)

    # Batches are too small for groups: statistics are those of the whole batch.
    backbone = whole_batch(backbone_of(init) or ResNet(10, width=0.5))
    head = FasterRCNN(FPN(channels=64, width=256, anchor_sizes=(12, 20, 32, 52, 84), candidates=(300, 200),
                          proposals=(150, 100), rois=48), max_boxes=16, metric="AP50")
    jitter = ScaleJitter(size, scale=(0.7, 1.4), of="fit", least_seen=0.3, masks=False)
    return Experiment(
        train=Input(scenes("train", images), jitter, batch_size),
        evals={"test": Input(scenes("test", 500), Fit(size, size, ((size, size),), random=False, masks=False),
                             batch_size)},
        backbone=backbone,
        head=head,
        optimizer=AdamW(1e-3, schedule=Cosine(warmup=steps // 20), weight_decay=0.02, clip=10.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
