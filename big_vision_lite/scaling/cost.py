"""What a run costs before it is run: operations of its backbone, and seconds by those of runs that are done."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.data.cores import usable_cores
from big_vision_lite.experiment import Experiment
from big_vision_lite.training.operations import count

ASSUMED_PER_CORE = 10e9
"""Operations a second of a CPU core where no run was timed yet (measured: 8 to 25e9, docs/performance.md)."""
START_SECONDS = 20.0
"""Assumed for starting a process, compiling and evaluating."""


def operations(experiment: Experiment) -> float:
    """Multiplications and additions of a run's training, in its backbone alone: forward and backward, which costs
    twice as much, or forward where the backbone is frozen. Evaluations are not counted."""
    height, width = experiment.train.transform.shape[:2]
    frozen = "backbone" in experiment.transfer.freeze
    images = experiment.steps * experiment.train.batch_size
    return images * (1 if frozen else 3) * _forward(experiment.backbone, height, width)


def seconds(experiment: Experiment, measured: Iterable[tuple[Experiment, float]]) -> tuple[float, bool]:
    """Estimated seconds of a run, and whether runs that were timed, (experiment, seconds), say so."""
    work, took = 0.0, 0.0
    for done, spent in measured:
        work += operations(done)
        took += max(spent - START_SECONDS, 1.0)
    rate = work / took if work else ASSUMED_PER_CORE * usable_cores()
    return START_SECONDS + operations(experiment) / rate, bool(work)


@functools.lru_cache(maxsize=64)
def _forward(backbone: Backbone, height: int, width: int) -> float:
    """Operations of one image's features."""
    def features(images: Any) -> Any:
        return backbone.build(nnx.Rngs(0))(images, train=False)

    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    return count(jax.make_jaxpr(features)(images).jaxpr).flops
