"""Estimates the floating-point operations, memory traffic and peak memory of a traced program.

The model: convolutions, matrix products, reductions, gathers, scatters and sorts read their operands from memory and
write their results; everything else is fused into its readers, and is written only where a convolution or a matrix
product reads it. It ignores the compiler's choices (layouts, workspaces, rematerialisation).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

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
    operations = _used(jaxpr)
    total, loops = Count(), {}
    for at, (equation, _, _) in enumerate(operations):
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

    multiplied = {v for equation, reads, _ in operations if equation.primitive.name in _PRODUCTS
                  for v in reads if not isinstance(v, Literal)}
    roots: dict[Any, frozenset[Any]] = {}  # for each variable, the arrays in memory that it is computed from
    last_read: dict[Any, int] = {}
    written_at: dict[Any, int] = {}
    for at, (equation, reads, writes) in enumerate(operations):
        reads = [v for v in reads if not isinstance(v, Literal)]
        name, inputs = equation.primitive.name, frozenset().union(*(roots.get(v, frozenset((v,))) for v in reads))
        last_read.update(dict.fromkeys(inputs, at))
        unfused = name in _PRODUCTS or at in loops or (name.startswith(_WRITTEN) and name != "reduce_precision")
        if unfused and at not in loops:
            total.bytes += sum(map(size, reads)) + sum(map(size, writes))
        for variable in writes:
            if unfused or variable in multiplied:
                total.bytes += 0.0 if unfused else sum(map(size, inputs)) + size(variable)
                roots[variable], written_at[variable] = frozenset((variable,)), at
            else:
                roots[variable] = inputs
    allocated, freed, alive = [0.0] * len(operations), [0.0] * len(operations), 0.0
    for variable, at in written_at.items():
        allocated[at] += size(variable)
        freed[max(last_read.get(variable, at), at)] += size(variable)
    for at in range(len(operations)):
        alive += allocated[at]
        total.peak = max(total.peak, alive + loops.get(at, 0.0))
        alive -= freed[at]
    return total


def _flat(jaxpr: Any, names: dict[Any, Any]) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """Each operation with the variables it reads and writes; calls are inlined. ``names``: aliases of variables."""
    for equation in jaxpr.eqns:
        inner = _called(equation)
        if inner is None:
            yield equation, [_find(v, names) for v in equation.invars], list(equation.outvars)
            continue
        operands = equation.invars[1:] if equation.primitive.name == "cond" else equation.invars
        # A function that is called twice has one set of variables: each call gets its own.
        copy = _fresh(inner)
        names.update(zip(copy.invars, operands, strict=True))
        yield from _flat(copy, names)
        names.update(zip(equation.outvars, copy.outvars, strict=True))


def _find(variable: Any, names: dict[Any, Any]) -> Any:
    while not isinstance(variable, Literal) and variable in names:
        variable = names[variable]
    return variable


class _Variable:
    """A variable of one call."""

    def __init__(self, aval: Any):
        self.aval = aval


@dataclasses.dataclass
class _Jaxpr:
    invars: list[Any]
    outvars: list[Any]
    eqns: list[Any]


@dataclasses.dataclass
class _Equation:
    primitive: Any
    params: dict[str, Any]
    invars: list[Any]
    outvars: list[Any]


def _fresh(jaxpr: Any) -> _Jaxpr:
    new: dict[Any, Any] = {}

    def of(variable: Any) -> Any:
        if isinstance(variable, Literal):
            return variable
        if variable not in new:
            new[variable] = _Variable(variable.aval)
        return new[variable]

    invars = [of(v) for v in jaxpr.invars]
    eqns = [_Equation(e.primitive, e.params, [of(v) for v in e.invars], [of(v) for v in e.outvars]) for e in jaxpr.eqns]
    return _Jaxpr(invars, [of(v) for v in jaxpr.outvars], eqns)


def _called(equation: Any) -> Any:
    """The function that an operation calls, if that is all it does; of several branches the last, which of those for
    platforms is not the CPU's."""
    params = equation.params
    if equation.primitive.name == "cond":
        return params["branches"][-1].jaxpr
    if equation.primitive.name in ("scan", "while") or equation.primitive.name.startswith("reduce"):
        return None  # a reduction's function combines two numbers
    inner = params.get("jaxpr", params.get("call_jaxpr", params.get("fun_jaxpr")))
    return getattr(inner, "jaxpr", inner)


def _used(jaxpr: Any) -> list[tuple[Any, list[Any], list[Any]]]:
    """The operations that a result depends on, in order."""
    names: dict[Any, Any] = {}
    operations, needed, used = list(_flat(jaxpr, names)), set(), []
    needed.update(v for v in (_find(v, names) for v in jaxpr.outvars) if not isinstance(v, Literal))
    for operation in reversed(operations):
        if not needed.isdisjoint(operation[2]):
            used.append(operation)
            needed.update(v for v in operation[1] if not isinstance(v, Literal))
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
