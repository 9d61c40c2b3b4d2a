"""Estimates the floating-point operations, memory traffic and peak memory of a traced program.

The model: convolutions, matrix products, reductions, gathers, scatters and sorts read their operands from memory and
write their results; everything else is fused into its readers, and is written only where a convolution or a matrix
product reads it. It ignores the compiler's choices (layouts, workspaces, rematerialisation).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

_PRODUCTS = ("conv_general_dilated", "dot_general")
_WRITTEN = ("reduce", "select_and_scatter", "gather", "scatter", "dynamic_update_slice", "argmax", "argmin", "sort",
            "top_k", "approx_top_k", "cumsum")
"""Prefixes of the names of other operations that read and write memory; not reduce_precision, which rounds."""


@dataclasses.dataclass
class Count:
    """Cost of a program on one device."""

    flops: float = 0.0
    """Floating-point operations of convolutions and matrix products; a multiply-add counts as two."""
    bytes: float = 0.0
    """Memory traffic."""
    peak: float = 0.0
    """Peak bytes of the operations' results."""


def count(jaxpr: Any, replicated: Collection[tuple[int, ...]] = (), devices: int = 1) -> Count:
    """Cost of a jaxpr on one of its devices, over which all arrays are split evenly but those of shapes in
    ``replicated``. Operations that no result depends on do not count."""
    equations = _used(_inlined(jaxpr))
    total, loops = Count(), {}
    for at, equation in enumerate(equations):
        if equation.primitive.name in ("scan", "while"):
            body = equation.params["jaxpr" if equation.primitive.name == "scan" else "body_jaxpr"].jaxpr
            inner, times = count(body, replicated, devices), equation.params.get("length", 1)
            total.flops, total.bytes = total.flops + times * inner.flops, total.bytes + times * inner.bytes
            loops[at] = inner.peak
        elif equation.primitive.name in _PRODUCTS:
            total.flops += _flops(equation) / devices

    def size(variable: Any) -> float:
        shape, dtype = getattr(variable.aval, "shape", ()), getattr(variable.aval, "dtype", None)
        total_bytes = math.prod(shape) * getattr(dtype, "itemsize", 4)
        return total_bytes if tuple(shape) in replicated else total_bytes / devices

    multiplied = {v for equation in equations if equation.primitive.name in _PRODUCTS for v in _reads(equation)}
    roots: dict[Any, frozenset[Any]] = {}  # for each variable, the arrays in memory that it is computed from
    last_read: dict[Any, int] = {}
    written_at: dict[Any, int] = {}
    for at, equation in enumerate(equations):
        reads, name = _reads(equation), equation.primitive.name
        inputs = frozenset().union(*(roots.get(v, frozenset((v,))) for v in reads))
        last_read.update(dict.fromkeys(inputs, at))
        unfused = name in _PRODUCTS or at in loops or (name.startswith(_WRITTEN) and name != "reduce_precision")
        if unfused and at not in loops:
            total.bytes += sum(map(size, reads)) + sum(map(size, equation.outvars))
        for variable in equation.outvars:
            if unfused or variable in multiplied:
                total.bytes += 0.0 if unfused else sum(map(size, inputs)) + size(variable)
                roots[variable], written_at[variable] = frozenset((variable,)), at
            else:
                roots[variable] = inputs
    allocated, freed, alive = [0.0] * len(equations), [0.0] * len(equations), 0.0
    for variable, at in written_at.items():
        allocated[at] += size(variable)
        freed[max(last_read.get(variable, at), at)] += size(variable)
    for at in range(len(equations)):
        alive += allocated[at]
        total.peak = max(total.peak, alive + loops.get(at, 0.0))
        alive -= freed[at]
    return total


def _reads(equation: Any) -> list[Any]:
    """The variables that an operation reads."""
    return [v for v in equation.invars if not isinstance(v, Literal)]


def _inlined(jaxpr: Any) -> Any:
    """The same program without calls: traced again, each call of a function gets variables of its own."""
    def evaluate(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

        def value_of(variable: Any) -> Any:
            return variable.val if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            operands, called = [value_of(v) for v in equation.invars], _called(equation)
            if called is None:
                results = equation.primitive.bind(*operands, **equation.params)
                results = results if equation.primitive.multiple_results else [results]
            else:
                operands = operands[1:] if equation.primitive.name == "cond" else operands
                results = evaluate(getattr(called, "jaxpr", called), getattr(called, "consts", ()), operands)
            values.update(zip(equation.outvars, results, strict=True))
        return [value_of(v) for v in jaxpr.outvars]

    consts, inputs = ([v.aval for v in variables] for variables in (jaxpr.constvars, jaxpr.invars))
    return jax.make_jaxpr(lambda *arguments: evaluate(jaxpr, *arguments))(consts, inputs).jaxpr


def _called(equation: Any) -> Any:
    """The function that an operation calls, if that is all it does; of several branches the last, which of those for
    platforms is not the CPU's."""
    params = equation.params
    if equation.primitive.name == "cond":
        return params["branches"][-1]
    if equation.primitive.name in ("scan", "while") or equation.primitive.name.startswith("reduce"):
        return None  # a reduction's function combines two numbers
    return params.get("jaxpr", params.get("call_jaxpr", params.get("fun_jaxpr")))


def _used(jaxpr: Any) -> list[Any]:
    """The operations that a result depends on, in order."""
    needed, used = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            used.append(equation)
            needed.update(_reads(equation))
    return used[::-1]


def _flops(equation: Any) -> float:
    """Operations of a convolution or matrix product, without products with zeros of padding and dilation."""
    left, right = (v.aval.shape for v in equation.invars[:2])
    out, params = equation.outvars[0].aval.shape, equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    numbers = params["dimension_numbers"]
    flops = 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * right[numbers.rhs_spec[1]]
    for axis, stride in enumerate(params["window_strides"]):
        inner, outer = params["lhs_dilation"][axis], params["rhs_dilation"][axis]
        (before, _), size = params["padding"][axis], left[numbers.lhs_spec[2 + axis]]
        taps = np.arange(right[numbers.rhs_spec[2 + axis]]) * outer - before
        at = np.arange(out[numbers.out_spec[2 + axis]])[:, None] * stride + taps
        flops *= int(((at >= 0) & (at <= (size - 1) * inner) & (at % inner == 0)).sum())
    return flops
