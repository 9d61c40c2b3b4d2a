"""Runs that are killed, and end as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import metrics_of

from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.training.metrics import read_metrics
from big_vision_lite.training.trees import flatten

CONFIG = '''
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD

def get_config() -> Experiment:
    def inputs(split, images, transform):
        return Input(EmojiScenes(split, images, size=32, classes=10), transform, 16)
    return Experiment(
        train=inputs("train", 100, RandomCropPadded(32, pad=4)),
        evals={"validation": inputs("validation", 20, Resize(32))},
        backbone=ResNet(10, width=1 / 16, stem="half"), head=Classification(), optimizer=SGD(0.05), steps=STEPS,
        log_every=1, eval_every=STEPS // 3, save_every=20, ema=0.9)
'''
STEPS = 200


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Starts a run's process in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "tiny.py"
    config.write_text(CONFIG.replace("STEPS", str(STEPS)))

    def start(name: str) -> tuple[subprocess.Popen, Path]:
        command = [sys.executable, "-m", "big_vision_lite", "train", str(config), "--workdir", str(folder / name)]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=environment), folder / name

    return start


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    while process.poll() is None:
        lines = read_metrics(workdir / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


def wait_for_checkpoint(process: subprocess.Popen, workdir: Path) -> None:
    while process.poll() is None:
        if any(entry.name.isdigit() for entry in (workdir / "checkpoints").glob("*")):
            return
        time.sleep(0.001)
    raise AssertionError(process.communicate()[1])


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_a_killed_run_ends_as_one_never_killed(runs):
    rng = np.random.default_rng()  # a different moment each time the test runs
    process, whole = runs("whole")
    finish(process)

    process, broken = runs("broken")
    first = int(rng.integers(25, 90))
    wait_for_step(process, broken, first)
    wait_for_checkpoint(process, broken)  # on a slow disk the first save may take longer than these steps
    process.kill()
    process.communicate()
    assert read_metrics(broken / "metrics.jsonl")[-1]["step"] < STEPS

    process, _ = runs("broken")
    wait_for_step(process, broken, int(rng.integers(first + 25, STEPS - 40)))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "going on from step" in out, out
    assert "stopped by SIGTERM after step" in err, err
    stopped_at = int(err.split("after step ")[1].split(",")[0])

    process, _ = runs("broken")
    assert f"going on from step {stopped_at}" in finish(process)

    steps = [line["step"] for line in read_metrics(broken / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert metrics_of(broken) == metrics_of(whole)
    states = [flatten(open_run(folder)[1]) for folder in (whole, broken)]
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)

    results = json.loads((broken / "run.json").read_text())["results"]
    assert results == json.loads((whole / "run.json").read_text())["results"]


def test_a_finished_run_is_left_as_it_is_and_can_be_moved(runs, tmp_path):
    from big_vision_lite.cli import main

    process, whole = runs("whole")
    before = (whole / "metrics.jsonl").read_text()
    assert "nothing is left to train" in finish(process)
    assert (whole / "metrics.jsonl").read_text() == before
    moved = whole.rename(tmp_path / "elsewhere")
    assert main(["evaluate", str(moved)]) == 0
    again = json.loads((moved / "evaluations" / f"validation-{STEPS}.json").read_text())
    last = metrics_of(moved)[-1]
    assert again["mAP"] == pytest.approx(last["validation/mAP"], abs=1e-6)
