"""What makes training on CPUs fast: XLA's options, forms of operations, devices, and how memory is kept.

None of it changes what is computed beyond rounding. ``BVL_CPU=plain`` switches all of it off. A run records its
settings in run.json; when it is resumed they are used again, so that it ends with the same bits. Measured in
docs/performance.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from importlib import metadata
from typing import Any

import msgspec

from big_vision_lite.errors import UserError

FORMS = "2026-11"
"""Of convolutions and max-pooling, in `backbones`: a new name for each change of their rules."""

YNN_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
"""Which operations XLA gives to its library of kernels. By default convolutions, which XLA itself computes faster, and
not sums, such as BatchNorm's, which it computes on one core."""
OPTIONS = {YNN_FUSIONS: "LIBRARY_FUSION_TYPE_REDUCE"}
TESTED_JAXLIB = ("0.10.2",)
"""Versions that `OPTIONS` were tried with; others get none, since a compiler refuses options that it does not know."""

_MALLOPT = {-4: 0, -1: 2**31 - 1, -2: 2**28}
"""glibc's M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD: keep freed memory, where it would return large blocks to the
system at once and have the system clear each page again in the next step."""


class CpuSettings(msgspec.Struct, frozen=True):
    """How a run computes on CPUs, as in run.json."""

    forms: str
    """`FORMS`, or "plain": XLA's own operations."""
    options: dict[str, str]
    """Options of XLA's compiler."""
    devices: int | None = None
    """CPU devices of each process; None: as many as JAX shows."""


_current: CpuSettings | None = None


def settings() -> CpuSettings:
    """The settings of this process.

    Raises:
      UserError: $BVL_CPU is not a word that it may be.
    """
    return _current or default_settings()


def default_settings(devices: int | None = None) -> CpuSettings:
    """What suits this machine; $BVL_CPU and $XLA_FLAGS win. Raises: UserError as `settings`."""
    choice = os.environ.get("BVL_CPU") or "fast"
    if choice not in ("fast", "plain"):
        raise UserError(f"BVL_CPU={choice}; expected fast (the default) or plain")
    if choice == "plain":
        return CpuSettings("plain", {}, devices)
    knows = metadata.version("jaxlib") in TESTED_JAXLIB
    flags = os.environ.get("XLA_FLAGS", "")
    return CpuSettings(FORMS, {name: value for name, value in OPTIONS.items() if knows and name not in flags}, devices)


def use_settings(wanted: CpuSettings) -> None:
    """Compute as ``wanted`` from now on, as far as this version and jaxlib can and $BVL_CPU and $XLA_FLAGS let it:
    `settings` has what is used."""
    global _current
    forms, options = default_settings().forms, default_settings().options
    if not os.environ.get("BVL_CPU"):
        forms = wanted.forms if wanted.forms in (FORMS, "plain") else forms
        flags, knows = os.environ.get("XLA_FLAGS", ""), metadata.version("jaxlib") in TESTED_JAXLIB
        options = {name: value for name, value in wanted.options.items() if knows and name not in flags}
    _current = CpuSettings(forms, options, wanted.devices)


def force(exact: CpuSettings) -> None:
    """Compute as ``exact`` from now on, whatever $BVL_CPU says."""
    global _current
    _current = exact


def uses_fast_forms() -> bool:
    return settings().forms != "plain"


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step; without glibc nothing happens, and $MALLOC_... wins."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if chosen or not uses_fast_forms():
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)


def to_json(used: CpuSettings, devices: int) -> dict[str, Any]:
    return msgspec.to_builtins(msgspec.structs.replace(used, devices=devices))


def differences(earlier: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """What a resumed run computes otherwise than before, in words; None: nothing. Both are "cpu" of a run.json; None
    where an older version wrote none."""
    if earlier is None:
        return "an older version began this run, and computed convolutions in other forms"
    changed = [f"{name} {earlier.get(name)}, now {value}" for name, value in now.items() if earlier.get(name) != value]
    return f"before, this run computed with {'; '.join(changed)}" if changed else None
