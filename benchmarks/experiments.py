"""Runs to measure: a network of a given size on generated images, and the process that trains it."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.training.optimizers import SGD


@dataclasses.dataclass(frozen=True)
class Network:
    """A ResNet trained by SGD with momentum, on generated scenes of ten classes."""

    depth: int = 50
    width: float = 1.0
    pixels: int = 64
    batch_size: int = 8
    task: Literal["classification", "detection"] = "classification"
    """Detection is Faster R-CNN with FPN."""

    def __post_init__(self) -> None:
        if self.pixels < 16 or self.batch_size < 1:
            raise UserError(f"pixels={self.pixels}, batch_size={self.batch_size}; expected at least 16, and 1")

    def experiment(self, steps: int) -> Experiment:
        """A run that saves after every step."""
        source = EmojiScenes("train", max(256, self.batch_size), size=self.pixels, classes=10)
        side, detects = self.pixels, self.task == "detection"
        view = (ResizeToFit(side, side, ((side, side),), random=False, masks=False) if detects
                else RandomCropPadded(side, pad=4))
        return Experiment(Input(source, view, self.batch_size, threads=1), {},
                          ResNet(self.depth, width=self.width, norm=BatchNorm(None),
                                 stem="imagenet" if detects else "half"),
                          FasterRCNN(FPN()) if detects else Classification(), SGD(0.01), steps=steps, save_every=1,
                          max_checkpoints=steps, log_every=1)


CONFIG = """
import sys
sys.path.insert(0, {folder!r})
from experiments import Network

def get_config():
    return {network!r}.experiment({steps})
"""


def write_config(path: Path, network: Network, steps: int) -> Path:
    """A config file of `Network.experiment`."""
    path.write_text(CONFIG.format(folder=str(Path(__file__).parent), network=network, steps=steps))
    return path


def train(config: Path, workdir: Path, cache: Path) -> None:
    """Run ``bvl train`` on CPU devices, one per core, with a given cache of compiled programs.

    Raises:
      UserError: it fails; with its last line.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(usable_cores()),
                   "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run([sys.executable, "-m", "big_vision_lite", "train", str(config), "--workdir", str(workdir)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode:
        lines = done.stdout.strip().splitlines()
        raise UserError(f"a run of {config.name} failed: {lines[-1] if lines else 'without output'}")


def spread(values: Sequence[float]) -> Mapping[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def line(name: str, values: Mapping[str, float], unit: str, digits: int = 2) -> str:
    """A line of text for a `spread`."""
    return (f"{name:46} {values['median']:10,.{digits}f} {unit}   "
            f"({values['least']:,.{digits}f} to {values['most']:,.{digits}f})")


def main(benchmark: Callable[[Any], dict[str, Any]], options: type) -> None:
    """The command line of a benchmark: --help lists its options; bad input is one line."""
    try:
        benchmark(tyro.cli(options))
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def write_measurements(path: Path | None, measurements: dict[str, Any]) -> dict[str, Any]:
    """Write the measurements as JSON, where there is a path, and return them."""
    if path is not None:
        path.write_text(json.dumps(measurements, indent=1) + "\n")
    return measurements
