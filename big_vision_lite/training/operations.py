"""Counts what a traced program does: floating-point operations, bytes moved, and bytes held.

The model: convolutions, matrix products, reductions, gathers, scatters and sorts read their operands from memory and
write their results; everything between them is fused into its readers, and is written only where a convolution or a
product reads it. It knows nothing of a compiler's choices (layouts, workspaces, rematerialisation).
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
"""How the names of other operations begin that read and write memory; not reduce_precision, which rounds."""


@dataclasses.dataclass
class Count:
    """Floating-point operations, and bytes moved and held."""

    flops: float = 0.0
    bytes: float = 0.0
    peak: float = 0.0
    """Bytes alive at once of what the operations write."""


def count(jaxpr: Any, whole: Collection[tuple[int, ...]] = (), devices: int = 1) -> Count:
    """Of a program as `jax.make_jaxpr` gives it, on one of its devices, which share everything evenly but arrays of the
    shapes in ``whole``. What no result depends on does not count."""
    operations = _used(jaxpr)
    total, loops = Count(), {}
    for at, (equation, _, _) in enumerate(operations):
        if equation.primitive.name in ("scan", "while"):
            body = equation.params["jaxpr" if equation.primitive.name == "scan" else "body_jaxpr"].jaxpr
            inner, times = count(body, whole, devices), equation.params.get("length", 1)
            total.flops, total.bytes = total.flops + times * inner.flops, total.bytes + times * inner.bytes
            loops[at] = inner.peak
        elif equation.primitive.name in _PRODUCTS:
            total.flops += _flops(equation) / devices

    def size(variable: Any) -> float:
        shape, dtype = getattr(variable.aval, "shape", ()), getattr(variable.aval, "dtype", None)
        count = math.prod(shape) * getattr(dtype, "itemsize", 4)
        return count if tuple(shape) in whole else count / devices

    multiplied = {v for equation, reads, _ in operations if equation.primitive.name in _PRODUCTS
                  for v in reads if not isinstance(v, Literal)}
    roots: dict[Any, frozenset[Any]] = {}  # for each variable, what must be in memory to have it
    last: dict[Any, int] = {}
    made: dict[Any, int] = {}
    for at, (equation, reads, writes) in enumerate(operations):
        reads = [v for v in reads if not isinstance(v, Literal)]
        name, behind = equation.primitive.name, frozenset().union(*(roots.get(v, frozenset((v,))) for v in reads))
        last.update(dict.fromkeys(behind, at))
        written = name.startswith(_WRITTEN) and name != "reduce_precision"
        anchor = name in _PRODUCTS or written or at in loops
        if anchor and at not in loops:
            total.bytes += sum(map(size, reads)) + sum(map(size, writes))
        for variable in writes:
            if anchor or variable in multiplied:
                total.bytes += 0.0 if anchor else sum(map(size, behind)) + size(variable)
                roots[variable], made[variable] = frozenset((variable,)), at
            else:
                roots[variable] = behind
    ends = [0.0] * (len(operations) + 1)
    alive = 0.0
    for variable, at in made.items():
        ends[max(last.get(variable, at), at)] += size(variable)
    starts = [0.0] * (len(operations) + 1)
    for variable, at in made.items():
        starts[at] += size(variable)
    for at in range(len(operations)):
        alive += starts[at]
        total.peak = max(total.peak, alive + loops.get(at, 0.0))
        alive -= ends[at]
    return total


def _flat(jaxpr: Any, names: dict[Any, Any]) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """Each operation with what it reads and writes, calls opened. ``names``: what stands for a variable."""
    for equation in jaxpr.eqns:
        inner = _called(equation)
        if inner is None:
            yield equation, [_find(v, names) for v in equation.invars], list(equation.outvars)
            continue
        operands = equation.invars[1:] if equation.primitive.name == "cond" else equation.invars
        # A function that is called twice has its variables once: each call stands on its own.
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
    """The function that an operation only calls; of a choice between platforms, the last: that for any other than
    CPUs, and of other choices the last as well."""
    params = equation.params
    if equation.primitive.name == "cond":
        return params["branches"][-1].jaxpr
    if equation.primitive.name in ("scan", "while") or equation.primitive.name.startswith("reduce"):
        return None  # a reduction's function is that of two numbers
    inner = params.get("jaxpr", params.get("call_jaxpr", params.get("fun_jaxpr")))
    return getattr(inner, "jaxpr", inner)


def _used(jaxpr: Any) -> list[tuple[Any, list[Any], list[Any]]]:
    """The operations, in order, that something depends on."""
    names: dict[Any, Any] = {}
    operations, needed, kept = list(_flat(jaxpr, names)), set(), []
    needed.update(v for v in (_find(v, names) for v in jaxpr.outvars) if not isinstance(v, Literal))
    for operation in reversed(operations):
        if not needed.isdisjoint(operation[2]):
            kept.append(operation)
            needed.update(v for v in operation[1] if not isinstance(v, Literal))
    return kept[::-1]


def _flops(equation: Any) -> float:
    """Of a convolution or a matrix product. Products with the zeros of padding and dilation do not count."""
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
