"""Runs that are measured: a network of a given size on generated images, and the processes that train it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import PadCrop
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD


@dataclasses.dataclass(frozen=True)
class Network:
    """What is trained: a ResNet with momentum, on generated scenes of ten classes."""

    depth: int = 50
    width: float = 1.0
    pixels: int = 64
    batch_size: int = 8
    group: int | None = None
    """Images that BatchNorm takes statistics over; None: all of a batch."""

    def __post_init__(self) -> None:
        if self.pixels < 16 or self.batch_size < 1:
            raise UserError(f"pixels={self.pixels}, batch_size={self.batch_size}; expected at least 16, and 1")

    def experiment(self, steps: int, save_every: int, log_every: int = 1, images: int = 256) -> Experiment:
        source = EmojiScenes("train", max(images, self.batch_size), size=self.pixels, classes=10)
        inputs = Input(source, PadCrop(self.pixels, pad=4), self.batch_size, threads=1)
        return Experiment(inputs, {}, ResNet(self.depth, width=self.width, norm=BatchNorm(self.group), stem="half"),
                          Classification(), SGD(0.01), steps=steps, save_every=save_every, keep=max(steps, 1),
                          log_every=log_every)


CONFIG = """
from big_vision_lite.bench.experiments import Network

def get_config():
    return {network!r}.experiment({steps}, {save_every}, {log_every}, {images})
"""


def write_config(path: Path, network: Network, steps: int, save_every: int, log_every: int = 1,
                 images: int = 256) -> Path:
    """A config file of `Network.experiment`."""
    path.write_text(CONFIG.format(network=network, steps=steps, save_every=save_every, log_every=log_every,
                                  images=images))
    return path


def train(config: Path, workdir: Path, cores: Sequence[Sequence[int]], cache: Path) -> None:
    """Train by as many processes as there are sets of cores, each pinned to its own, a device a core.

    Raises:
      UserError: one of them failed; with its last line.
    """
    command = [sys.executable, "-m", "big_vision_lite", "train", str(config), "--workdir", str(workdir)]
    with contextlib.ExitStack() as stack:
        started = []
        address = f"127.0.0.1:{_free_port()}"
        for process, own in enumerate(cores):
            together = [] if len(cores) == 1 else ["--coordinator", address, "--processes", str(len(cores)),
                                                   "--process", str(process)]
            said = stack.enter_context(open(workdir.with_name(f"{workdir.name}.{process}.txt"), "w+"))
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(len(own)),
                           "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            started.append((subprocess.Popen([sys.executable, "-c", PINNED, ",".join(map(str, own)), *command,
                                              *together], stdout=said, stderr=said, env=environment,
                                             start_new_session=True), said))
        try:
            failed = [said for process, said in started if process.wait()]
        finally:
            for process, _ in started:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if failed:
            failed[0].seek(0)
            lines = failed[0].read().strip().splitlines()
            raise UserError(f"a run of {config.name} failed: {lines[-1] if lines else 'it said nothing'}")


PINNED = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes a command that may use some cores alone."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def spread(values: Sequence[float]) -> Mapping[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def said(name: str, found: Mapping[str, Any], unit: str, digits: int = 2) -> str:
    """A line of text for `spread`."""
    return (f"{name:46} {found['median']:10,.{digits}f} {unit}   "
            f"({found['least']:,.{digits}f} to {found['most']:,.{digits}f})")
