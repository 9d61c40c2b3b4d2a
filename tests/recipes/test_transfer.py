"""Transfer recipes against the published rules."""

import pytest

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.recipes.transfer import bit_finetuning


@pytest.mark.parametrize(("images", "pixels", "resolution", "steps", "drops", "warmup", "mixup"), [
    (2_040, 500 * 500, (448, 384), 500, (0.4, 0.6, 0.8), 100, 0.0),
    (19_999, 1, (160, 128), 500, (0.4, 0.6, 0.8), 100, 0.0),
    (50_000, 32 * 32, (160, 128), 10_000, (0.3, 0.6, 0.9), 500, 0.1),
    (1_281_167, 500 * 375, (448, 384), 20_000, (0.3, 0.6, 0.9), 500, 0.1),
])
def test_bits_hyper_rule(images, pixels, resolution, steps, drops, warmup, mixup):
    source = EmojiScenes("train", 8, size=32, classes=4)
    experiment = bit_finetuning(source, {"test": source}, images, init=None, pixels=pixels, backbone=ResNet(10))
    crop, schedule = experiment.train.transform, experiment.optimizer.schedule
    assert (crop.resize, crop.size) == resolution and experiment.evals["test"].transform.size == resolution[1]
    assert (experiment.steps, schedule.at, round(schedule.warmup * steps)) == (steps, drops, warmup)
    assert experiment.head.mixup == mixup
