"""`bvl bench step`: time and memory of a run's training step, with its data and without."""

import dataclasses

import jax
import pytest

from big_vision_lite import config as configs
from big_vision_lite.cli import main
from big_vision_lite.data.source import SavedDatasetInfo
from big_vision_lite.data.transforms.joint import ScaleJitter
from big_vision_lite.errors import UserError
from big_vision_lite.runs import benchmark
from big_vision_lite.runs.benchmark import bench_step, peak_memory

CONFIG = '''
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.joint import ScaleJitter
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.training.optimizers import SGD

def get_config():
    return Experiment(Input(EmojiScenes("train", 8, size=32, classes=4, objects=(1, 2)), ScaleJitter(32), 8), {},
                      ResNet(10, 1 / 16), Segmentation(ASPPL((1, 2)), size=32), SGD(0.1), steps=1)
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    return str(path)


def test_results_of_a_step(config, capsys, monkeypatch):
    cached, returned = jax.config.jax_enable_compilation_cache, []
    monkeypatch.setattr(benchmark, "bench_step", lambda *arguments: returned.append(bench_step(*arguments)))
    assert main(["bench", "step", config, "--repeat", "3"]) == 0
    assert jax.config.jax_enable_compilation_cache == cached
    (results,), printed = returned, capsys.readouterr().out
    assert results["batch"] == [8, 32, 32, 3] and results["devices"][1] == jax.device_count()
    seconds, memory = results["seconds"], results["resident"]
    assert results["repeat"] == 3 and results["compile_seconds"] > 0
    assert 0 < seconds["least"] <= seconds["median"] <= seconds["most"]
    assert results["images_per_second"] == pytest.approx(8 / seconds["median"])
    assert 0 < results["compiler"]["temporary"] < results["compiler"]["in_use"]
    assert 2**26 < memory["before"] <= memory["compiled"] <= memory["end"] <= peak_memory()
    assert "median of 3" in printed and "by the compiler" in printed and "peak of the process" in printed


def test_more_pixels_take_more_memory_and_no_data_is_needed(config):
    experiment = configs.load(config)
    source = dataclasses.replace(experiment.train.source, split="train", images=10**9)  # is never opened
    info, temporary = SavedDatasetInfo(tuple("abcd"), True, "", 0, ""), []
    for size in (32, 64):
        train = dataclasses.replace(experiment.train, source=source, transform=ScaleJitter(size))
        head = dataclasses.replace(experiment.head, size=size)
        results = bench_step(dataclasses.replace(experiment, train=train, head=head), info, repeat=1, warm_up=0)
        temporary.append(results["compiler"]["temporary"])
    assert 2 * temporary[0] < temporary[1] < 8 * temporary[0]


def test_bad_arguments(config, capsys):
    with pytest.raises(UserError, match="--repeat 0"):
        bench_step(configs.load(config), SavedDatasetInfo(("a",), True, "", 0, ""), repeat=0)
    assert main(["bench", "steps"]) == 2 and "did you mean 'bench step'" in capsys.readouterr().err
    assert main(["bench", "step"]) == 2 and "bvl bench step" in capsys.readouterr().err
