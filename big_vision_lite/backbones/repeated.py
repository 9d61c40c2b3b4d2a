"""Blocks of equal structure traced once: Python, differentiation and lowering run for the first of them only."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float

from big_vision_lite.system.cpu import uses_fast_forms


def run_block(block: nnx.Module, x: Float[Array, "b h w c"], *arguments: Any,
              train: bool) -> Float[Array, "b h2 w2 c2"]:
    """``block(x, *arguments, train=train)``, with the batch statistics that it changes.

    XLA replaces the calls of one traced function by its content, so the compiled program is that of a plain call. What
    differs between equal blocks, such as a rate, has to be among the ``arguments``, which are pytrees of arrays and
    numbers: an attribute would be part of the structure.
    """
    graphdef, params, batch_stats = nnx.split(block, nnx.Param, ...)
    x, changed = _run(graphdef, params, batch_stats, x, arguments, train, uses_fast_forms())
    nnx.update(block, changed)
    return x


@partial(jax.jit, static_argnames=("graphdef", "train", "fast"))
def _run(graphdef: Any, params: Any, batch_stats: Any, x: Array, arguments: tuple[Any, ...],
         train: bool, fast: bool) -> tuple[Array, Any]:
    """``fast`` is what the operations inside look up while they are traced."""
    block = nnx.merge(graphdef, params, batch_stats, copy=True)  # a copy, so that this function owns what it changes
    x = block(x, *arguments, train=train)
    before, after = (dict(nnx.to_flat_state(s)) for s in (batch_stats, nnx.split(block, nnx.Param, ...)[2]))
    return x, nnx.from_flat_state([(path, variable) for path, variable in after.items()
                                   if variable[...] is not before[path][...]])
