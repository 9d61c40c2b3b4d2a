"""Pretrain a ResNet on generated multi-label scenes of emoji: the main job in a few minutes on two CPU cores.

    bvl train configs/quickstart.py

Generates 20,000 scenes once (half a minute), trains, evaluates and draws predictions. Expect a validation mAP of more
than ten times chance; docs/results/small_runs.md has the measured values.
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine


def get_config(images: int = 20_000, subset: int | None = None, classes: int = 200, steps: int = 1300,
               batch_size: int = 64, depth: int = 10, seed: int = 0) -> Experiment:
    """
    Args:
      images: scenes to generate.
      subset: learn from this many of them; None: all.
      classes: size of the vocabulary: the most frequent emoji.
      steps: length of the run.
      batch_size: images per step.
      depth: layers of the ResNet.
      seed: seed of initialization, data order and augmentation.
    """
    def scenes(split: str, count: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, count, size=48, classes=classes, objects=(1, 2), zipf=0.5)

    return Experiment(
        train=Input(scenes("train", images), RandomCropPadded(48, pad=4), batch_size, curate=curated_by(subset=subset)),
        evals={"validation": Input(scenes("validation", 2_000), Resize(48), batch_size)},
        backbone=ResNet(depth, width=0.5, norm=BatchNorm(group=min(32, batch_size))),
        head=Classification("sigmoid"),
        optimizer=AdamW(3e-3 * (batch_size / 64) ** 0.5, schedule=Cosine(warmup=0.05), weight_decay=0.02),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=1 / 2,
    )
