"""Accelerators by name: the topologies that a preflight accepts, with the vendors' peak figures."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

from big_vision_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip, as its vendor states them."""

    name: str
    flops: float
    """Dense bfloat16 FLOP/s; a multiply-add counts as two."""
    bandwidth: float
    """Memory bandwidth in bytes/s."""
    memory: float
    """Bytes."""
    source: str
    devices: int = 1
    """JAX devices per chip; they share its figures evenly."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of a run: a TPU slice, GPUs or CPUs."""

    name: str
    """Such as "v5e:4x4"."""
    platform: Literal["tpu", "gpu", "cpu"]
    chips: int
    hosts: int
    chip: Chip | None = None
    """None for CPUs, whose figures are unknown."""
    host_cores: int | None = None
    """Virtual cores per host, by machine type; None: unknown."""

    @property
    def devices(self) -> int:
        return self.chips * (self.chip.devices if self.chip else 1)


_GIB = 2.0**30
_TPU, _NVIDIA = "Google Cloud TPU documentation", "NVIDIA data sheet"
TPUS = {chip.name: chip for chip in (
    Chip("v2", 46e12, 700e9, 16 * _GIB, _TPU, devices=2),
    Chip("v3", 123e12, 900e9, 32 * _GIB, _TPU, devices=2),
    Chip("v4", 275e12, 1200e9, 32 * _GIB, _TPU),
    Chip("v5e", 197e12, 819e9, 16 * _GIB, _TPU),
    Chip("v5p", 459e12, 2765e9, 95 * _GIB, _TPU),
    Chip("v6e", 918e12, 1638e9, 32 * _GIB, _TPU),
)}
GPUS = {chip.name: chip for chip in (
    Chip("v100", 125e12, 900e9, 16e9, f"{_NVIDIA} (float16: it has no bfloat16)"),
    Chip("t4", 65e12, 320e9, 16e9, f"{_NVIDIA} (float16: it has no bfloat16)"),
    Chip("l4", 121e12, 300e9, 24e9, _NVIDIA),
    Chip("a100", 312e12, 1555e9, 40e9, _NVIDIA),
    Chip("a100-80gb", 312e12, 2039e9, 80e9, _NVIDIA),
    Chip("h100", 989e12, 3350e9, 80e9, f"{_NVIDIA} (SXM)"),
    Chip("h200", 989e12, 4800e9, 141e9, f"{_NVIDIA} (SXM)"),
    Chip("b200", 2250e12, 8000e9, 180e9, f"{_NVIDIA} (HGX)"),
)}

_CLOUD = {"v2": "v2", "v3": "v3", "v4": "v4", "v5p": "v5p", "v5litepod": "v5e", "v5e": "v5e", "v6e": "v6e"}
"""Prefixes of Cloud TPU accelerator types, and their chips."""
_COUNTED_IN_CORES = ("v2", "v3", "v4", "v5p")
"""Chips whose accelerator types count cores, two per chip."""
_HOST_CORES = {"v2": {4: 96}, "v3": {4: 96}, "v4": {4: 240}, "v5e": {1: 24, 4: 112, 8: 224}, "v5p": {4: 208},
               "v6e": {1: 44, 4: 180, 8: 180}}
"""Virtual cores by chips per host (Google Cloud machine types)."""
GPUS_PER_HOST = 8
MAX_DEVICES = 10_000
"""More than any machine has, and than can be compiled for."""
_EXAMPLES = "v5e:4x4, v4-32, v5litepod-16, gpu:h100:8, cpu:8"


def parse_topology(text: str) -> Topology:
    """Parse the name of a topology.

    Args:
      text: a TPU's topology (``v5e:4x4``, chips along each axis), a Cloud TPU accelerator type (``v4-32``,
        ``v5litepod-16``), ``gpu:NAME:COUNT`` or ``cpu:COUNT``.

    Raises:
      UserError: unknown chip, a slice of it that does not exist, or more than `MAX_DEVICES`.
    """
    topology = _parsed(text.lower().removeprefix("tpu-"))
    if topology.devices > MAX_DEVICES:
        raise UserError(f"{text!r} has {topology.devices:,} devices; expected at most {MAX_DEVICES:,}")
    return topology


def _parsed(text: str) -> Topology:
    head, _, rest = text.partition(":")
    if head == "cpu" and re.fullmatch(r"[1-9]\d*", rest):
        return Topology(text, "cpu", int(rest), 1)
    if head == "gpu":
        return _gpus(text, rest)
    if head in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", rest):
        return _tpu(head, tuple(map(int, rest.split("x"))))
    cloud = re.fullmatch(r"([a-z0-9]+)-(\d+)", text)
    if cloud and cloud[1] in _CLOUD:
        return _accelerator_type(text, _CLOUD[cloud[1]], int(cloud[2]))
    known = [*(f"{name}:" for name in TPUS), *(f"{name}-" for name in _CLOUD), "gpu:", "cpu:"]
    name = re.match(r"[a-z0-9]*[:-]?", text)[0]
    hint = "" if name in known else nearest(name, known)
    raise UserError(f"unknown topology {text!r}; expected one such as {_EXAMPLES}{hint}")


def _gpus(text: str, rest: str) -> Topology:
    name, _, count = rest.partition(":")
    if name not in GPUS:
        raise UserError(f"{text!r}: unknown GPU {name!r}" + nearest(name, GPUS))
    if not re.fullmatch(r"[1-9]\d*", count):
        raise UserError(f"{text!r}: expected a number of GPUs, such as gpu:{name}:8")
    return Topology(text, "gpu", int(count), math.ceil(int(count) / GPUS_PER_HOST), GPUS[name])


def _tpu(name: str, shape: tuple[int, ...]) -> Topology:
    axes = 3 if name in ("v4", "v5p") else 2
    if len(shape) != axes:
        raise UserError(f"{name}:{'x'.join(map(str, shape))} has {len(shape)} axes; a slice of {name} has {axes}, such "
                        f"as {name}:{'x'.join('2' * axes)}")
    chips, sizes = math.prod(shape), _HOST_CORES[name]
    # A slice of v5e or v6e with up to 8 chips is one host; larger ones consist of hosts with 4 chips.
    per_host = chips if chips in sizes else 4
    topology = f"{name}:{'x'.join(map(str, shape))}"
    return Topology(topology, "tpu", chips, math.ceil(chips / per_host), TPUS[name], sizes[per_host])


def _accelerator_type(text: str, name: str, count: int) -> Topology:
    chips = count // 2 if name in _COUNTED_IN_CORES else count
    smallest = 4 if name in _COUNTED_IN_CORES else 1
    power_of_2 = chips >= smallest and chips & (chips - 1) == 0 and not (name in _COUNTED_IN_CORES and count % 2)
    if not power_of_2 or (name in ("v5e", "v6e") and chips == 2):
        sizes = "8, 16, 32 ... (cores, two per chip)" if name in _COUNTED_IN_CORES else "1, 4, 8, 16 ... (chips)"
        example = f"{name}:{'2x2x4' if name in ('v4', 'v5p') else '4x4'}"
        raise UserError(f"unknown accelerator type {text!r}; {text.partition('-')[0]}- is followed by {sizes}; write a "
                        f"slice of another shape as {example}")
    bits = chips.bit_length() - 1
    if name in ("v4", "v5p"):  # cubes grow along their last axes first; the smallest is one host of 2x2
        shape = (2, 2, 1) if bits == 2 else tuple(2**((bits + add) // 3) for add in (0, 1, 2))
    else:
        shape = (2**(bits // 2), 2**(bits - bits // 2))
    return _tpu(name, shape)
