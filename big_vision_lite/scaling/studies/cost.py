"""Estimated cost of a run: FLOPs of its backbone, and seconds by the speed of finished runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.experiment import Experiment
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.training.flops import count

ASSUMED_PER_CORE = 20e9
"""FLOP/s per CPU core before any run was timed (measured: 8 to 57e9, docs/performance.md)."""
GPU = 80e12
"""FLOP/s assumed of an H100: those of ResNet-101 at 299 pixels at the speed that `bvl preflight` estimates."""
START_SECONDS = 20.0
"""Assumed for process start, compilation and evaluation."""


def training_flops(experiment: Experiment) -> float:
    """FLOPs of a run's training in its backbone alone: forward, and backward at twice the cost unless it is frozen.
    Evaluations are not counted."""
    return experiment.steps * experiment.train.batch_size * _per_image(experiment)


def _per_image(experiment: Experiment) -> float:
    height, width = experiment.train.transform.shape[:2]
    frozen = "backbone" in experiment.transfer.freeze
    return (1 if frozen else 3) * _forward(experiment.backbone, height, width)


def flops_to_run(experiment: Experiment) -> float:
    """As `training_flops`, without those of a trunk."""
    shared = experiment.branch.step / experiment.steps if experiment.branch else 0.0
    return (1 - shared) * training_flops(experiment)


def estimate_seconds(experiment: Experiment, timed: Iterable[tuple[Experiment, float]]) -> tuple[float, bool]:
    """Estimated seconds of a run, and whether the estimate is based on ``timed`` runs."""
    flops, training_seconds = 0.0, 0.0
    for done, seconds in timed:
        flops += flops_to_run(done)
        training_seconds += max(seconds - START_SECONDS, 1.0)
    rate = flops / training_seconds if flops else ASSUMED_PER_CORE * usable_cores()
    return START_SECONDS + flops_to_run(experiment) / rate, bool(flops)


@functools.lru_cache(maxsize=64)
def _forward(backbone: Backbone, height: int, width: int) -> float:
    """FLOPs of the features of one image."""
    def features(images: Any) -> Any:
        return backbone.build(nnx.Rngs(0))(images, train=False)

    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    return count(jax.make_jaxpr(features)(images).jaxpr).flops
