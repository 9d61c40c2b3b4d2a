"""What a run costs before it is run: operations of its backbone, and seconds by those of runs that are done."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.experiment import Experiment

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
    rate = work / took if work else ASSUMED_PER_CORE * (os.cpu_count() or 1)
    return START_SECONDS + operations(experiment) / rate, bool(work)


@functools.lru_cache(maxsize=64)
def _forward(backbone: Backbone, height: int, width: int) -> float:
    """Operations of one image's features."""
    def features(images: Any) -> Any:
        return backbone.build(nnx.Rngs(0))(images, train=False)

    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    return float(_operations(jax.make_jaxpr(features)(images).jaxpr))


def _operations(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_operations(getattr(sub, "jaxpr", sub)) for sub in _inside(equation.params.values())]
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            length = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * length
        elif inner:  # of several branches one is taken
            total += (max if equation.primitive.name == "cond" else sum)(inner)
    return total


def _inside(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inside(value)
        elif hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
            yield value
