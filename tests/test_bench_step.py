"""`bvl bench step`: seconds and memory of a run's own step, on its data and without."""

import dataclasses
import json

import jax
import pytest

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.bench.step import bench_step, resident
from big_vision_lite.commands.checks import bench
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.joint_transforms import ScaleJitter
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Description
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.training.optimizers import SGD

CONFIG = '''
from test_bench_step import EXPERIMENT

def get_config():
    return EXPERIMENT
'''
EXPERIMENT = Experiment(Input(EmojiScenes("train", 8, size=32, classes=4, objects=(1, 2)), ScaleJitter(32), 8), {},
                        ResNet(10, 1 / 16), Segmentation(ASPPL((1, 2)), size=32), SGD(0.1), steps=1)


def test_figures_of_a_step(tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG)
    kept = jax.config.jax_enable_compilation_cache
    assert bench(["step", str(tmp_path / "config.py"), "--repeat", "3", "--out", str(tmp_path / "out.json")]) == 0
    assert jax.config.jax_enable_compilation_cache == kept
    found, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert found["batch"] == [8, 32, 32, 3] and found["devices"][1] == jax.device_count() and found["repeat"] == 3
    seconds = found["seconds"]
    assert 0 < seconds["least"] <= seconds["median"] <= seconds["most"] and found["compile_seconds"] > 0
    assert found["images_per_second"] == pytest.approx(8 / seconds["median"])
    assert 0 < found["compiler"]["temporary"] < found["compiler"]["in_use"]
    held = found["resident"]
    assert 2**26 < held["before"] <= held["compiled"] <= held["end"] <= resident()
    assert "median of 3" in printed and "by the compiler" in printed and "peak of the process" in printed


def test_more_pixels_take_more_memory_and_no_data_is_needed():
    nowhere = dataclasses.replace(EXPERIMENT.train.source, split="train", images=10**9)  # is never opened
    data, found = Description(tuple("abcd"), True, "", 0, ""), []
    for size in (32, 64):
        train = dataclasses.replace(EXPERIMENT.train, source=nowhere, transform=ScaleJitter(size))
        head = dataclasses.replace(EXPERIMENT.head, size=size)
        found.append(bench_step(dataclasses.replace(EXPERIMENT, train=train, head=head), data, repeat=1, warm_up=0))
    temporary = [each["compiler"]["temporary"] for each in found]
    assert 2 * temporary[0] < temporary[1] < 8 * temporary[0]


def test_what_cannot_be_measured_is_said():
    with pytest.raises(UserError, match="--repeat 0"):
        bench_step(EXPERIMENT, Description(("a",), True, "", 0, ""), repeat=0)
    with pytest.raises(UserError, match="expected bvl bench step CONFIG"):
        bench(["steps"])
    with pytest.raises(UserError, match="bvl bench step needs a config"):
        bench(["step"])
