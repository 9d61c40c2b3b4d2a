"""The main job in a few minutes on two CPU cores: pretrain a ResNet on noisy-world scenes, many labels an image.

    bvl train configs/quickstart.py

Composes 20,000 scenes of emoji once (half a minute), trains, scores and draws. Expect a validation mAP of over
ten times chance; README has the measured figures.
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import PadCrop, Squash
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine


def get_config(images: int = 20_000, classes: int = 200, steps: int = 1300, batch_size: int = 64, depth: int = 10,
               seed: int = 0) -> Experiment:
    """
    Args:
      images: scenes to learn from; fewer are the first ones of more.
      classes: the vocabulary, the most frequent first.
    """
    def scenes(split: str, count: int) -> EmojiScenes:
        return EmojiScenes(split, count, size=48, classes=classes, objects=(1, 2), zipf=0.5, prepared=True)

    return Experiment(
        train=Input(scenes("train", images), PadCrop(48, pad=4), batch_size),
        evals={"validation": Input(scenes("validation", 2_000), Squash(48), batch_size)},
        backbone=ResNet(depth, width=0.5, norm=BatchNorm(group=min(32, batch_size))),
        head=Classification("sigmoid"),
        optimizer=AdamW(3e-3 * (batch_size / 64) ** 0.5, schedule=Cosine(warmup=steps // 20), weight_decay=0.02),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=max(1, steps // 2),
    )
