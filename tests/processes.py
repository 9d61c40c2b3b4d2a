"""A config that trains in seconds, and runs of it in processes of their own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from big_vision_lite.training.metrics import read_metrics

CONFIG = '''
import dataclasses, os, time
import jax
from flax import nnx
from big_vision_lite.backbones.backbone import Backbone, BackboneModule, PixelNormalization
from big_vision_lite.backbones.norm import GroupNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD

class OneLayer(BackboneModule):
    def __init__(self, rngs):
        self.channels, self.strides = (8,) * 4, (2,) * 4
        self.conv = nnx.Conv(3, 8, (3, 3), 2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def begin(self, images, train):
        features = self.conv(PixelNormalization().normalize(images))
        return nnx.relu(self.norm(features, use_running_average=not train))

    def stage(self, index, x, train, keys=None):
        return x

@dataclasses.dataclass(frozen=True)
class Shallow(Backbone):
    """Compiles in no time, and its BatchNorm still needs every image of a batch."""

    def build(self, rngs):
        return OneLayer(rngs)

@dataclasses.dataclass(frozen=True)
class Paced(RandomCropPadded):
    """Slow where a test needs steps that last, and fails in one process as soon as a file exists."""

    def __call__(self, example, rng, out):
        if os.environ.get("FAILS") == str(jax.process_index()) and os.path.exists(os.environ["FROM"]):
            raise ValueError("this crop cannot be made")
        time.sleep(float(os.environ.get("PACE", 0)))
        return super().__call__(example, rng, out)

def get_config(deep: bool = False, paced: bool = True) -> Experiment:
    def inputs(split, images, transform):
        return Input(EmojiScenes(split, images, size=32, classes=10), transform, 8, threads=1)
    return Experiment(
        train=inputs("train", 40, (Paced if paced else RandomCropPadded)(16, pad=2)),
        evals={"validation": inputs("validation", 21, Resize(16))},
        backbone=ResNet(10, width=1 / 16, stem="half", norm=GroupNorm(groups=4)) if deep else Shallow(),
        head=Classification(),
        optimizer=SGD(0.01), steps=40, log_every=1, save_every=10)
'''
"""As the file tiny.py in a folder."""
TIMES = ("images_per_second", "data_wait")
"""Metrics that differ each time a run is repeated."""


def metrics_of(workdir: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, without `TIMES`."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(workdir / "metrics.jsonl")]


def train_command(folder: Path, name: str, *more: str) -> list[str]:
    """Arguments of bvl that train ``folder``/tiny.py in ``folder``/NAME."""
    depth = ":deep=true" if name.startswith("deep") else ""
    return ["train", f"{folder}/tiny.py{depth}", "--workdir", str(folder / name), *more]


def free_port() -> int:
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


def start(folder: Path, name: str, processes: int, devices: int, *more: str, pace: float = 0,
          **environment: str) -> list[subprocess.Popen]:
    """Start the processes of one run. Their output goes to files: nobody reads it while they run."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PACE": str(pace),
                   "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1", **environment}
    flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes), "--process"]
    return [start_process(folder, name, process, [*more, *flags, str(process)], environment)
            for process in range(processes)]


def start_process(folder: Path, name: str, process: int, more: list[str],
                  environment: dict[str, str]) -> subprocess.Popen:
    with open(folder / f"{name}.{process}.out", "w") as out, open(folder / f"{name}.{process}.err", "w") as err:
        return subprocess.Popen([sys.executable, "-m", "big_vision_lite", *train_command(folder, name, *more)],
                                stdout=out, stderr=err, env=environment)


def output(folder: Path, name: str, process: int) -> tuple[str, str]:
    """What a process has written to stdout and stderr."""
    return tuple((folder / f"{name}.{process}.{stream}").read_text() for stream in ("out", "err"))


def exit_codes(folder: Path, name: str, started: list[subprocess.Popen]) -> list[int]:
    try:
        return [process.wait(timeout=400) for process in started]
    except subprocess.TimeoutExpired:
        raise AssertionError([output(folder, name, i) for i in range(len(started))]) from None
    finally:
        for process in started:
            process.kill()


def wait_for_step(folder: Path, name: str, started: list[subprocess.Popen], step: int) -> None:
    while all(process.poll() is None for process in started):
        lines = read_metrics(folder / name / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError([output(folder, name, i) for i in range(len(started))])
