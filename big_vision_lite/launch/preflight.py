"""What a run would take on devices that are not here: does it fit, how fast can it be, how long will it take?

Each figure says where it comes from: ``compiled`` (the compiler's analysis of the run's own step), ``analytic``
(counted, or calculated from compiled and vendors' peak figures), ``assumed`` (not measured) or ``given``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax

from big_vision_lite.data.source import DatasetInfo, SavedDatasetInfo
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.launch.accelerators import GPUS_PER_HOST, Topology, parse_topology
from big_vision_lite.launch.compiled import (
    StepCost,
    batch_spec,
    bytes_per_device,
    compile_step,
    count_step,
    devices_of,
)
from big_vision_lite.training.loop import IN_FLIGHT
from big_vision_lite.training.trainer import Trainer

How = Literal["compiled", "analytic", "assumed", "given"]

ROOFLINE_SHARE = 0.6
"""Assumed share of the roofline's speed that a run reaches."""
MAX_CLASSES = 10**7
"""Beyond it, a number of classes must be a mistake."""
DECODE_RATE = 570.0
"""Assumed images/s decoded per core: docs/performance.md, JPEGs of 500x375, cropped to 224."""
IMAGE_BYTES = 117e3
"""Assumed bytes per stored image: of those JPEGs."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a preflight."""

    value: float | bool | str | None
    """None: unknown."""
    unit: str
    how: How
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What a run would take on a topology."""

    topology: str
    figures: dict[str, Figure]

    @property
    def fits(self) -> bool | None:
        return self.figures["fits"].value

    def to_json(self) -> dict[str, Any]:
        return {"topology": self.topology,
                "figures": {name: dataclasses.asdict(figure) for name, figure in self.figures.items()}}


def dataset_info(experiment: Experiment, classes: int | None = None) -> DatasetInfo:
    """What building the model needs to know of the data, which is opened, or with ``classes`` replaced by a stand-in.

    Raises:
      UserError: the data is not here and ``classes`` is not given.
    """
    if classes is not None:
        if not 1 <= classes <= MAX_CLASSES:
            raise UserError(f"--classes {classes}; expected 1 to {MAX_CLASSES:,}")
        return SavedDatasetInfo(tuple(f"class {i}" for i in range(classes)), True, "", 0, "")
    try:
        return experiment.train.open()
    except UserError as error:
        raise UserError(f"{error}; or give --classes N to analyse the step without its data") from None


def preflight(experiment: Experiment, topology: str, data: DatasetInfo, decode_rate: float | None = None,
              share: float | None = None, image_bytes: float | None = None) -> Preflight:
    """Compile the run's own step for a topology, or count it, and derive memory, speed and duration.

    Args:
      topology: see `parse_topology`. For TPUs and ``cpu:N`` the step is compiled, for GPUs counted.
      data: see `dataset_info`.
      decode_rate: images/s that a core decodes, as `bvl doctor` measures it.
      share: share of the roofline's speed that the run reaches.
      image_bytes: of a stored image.

    Raises:
      UserError: unknown topology, a batch that does not divide over it, or a step that cannot be built.
    """
    for name, value in (("--decode-rate", decode_rate), ("--share", share), ("--image-bytes", image_bytes)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} {value}; expected a number above 0")
    target = parse_topology(topology)
    trainer = Trainer(experiment, data, devices_of(target))
    compiling = target.platform != "gpu"
    how: How = "compiled" if compiling else "analytic"
    cost = compile_step(trainer) if compiling else count_step(trainer)
    figures = _devices(target) | _memory(trainer, target, cost, how)
    if figures["fits"].value is not False:
        figures |= _work(trainer, target, cost, how)
        figures |= _speed(experiment, target, cost, share)
        figures |= _reading(experiment, target, figures["images_per_second"], image_bytes)
        figures |= _decoding(target, figures["images_per_second"], decode_rate)
    if compiling:
        figures["compile_seconds"] = Figure(round(cost.seconds, 1), "s", "compiled", "on this machine")
    return Preflight(target.name, figures)


def _devices(target: Topology) -> dict[str, Figure]:
    note = "accelerator types are sold by chips or by cores" if target.platform == "tpu" else ""
    return {"chips": Figure(target.chips, "", "given", note),
            "devices": Figure(target.devices, "", "analytic", "as JAX shows them"),
            "hosts": Figure(target.hosts, "", "assumed" if target.platform == "gpu" else "analytic",
                            f"{GPUS_PER_HOST} GPUs per host" if target.platform == "gpu" else "")}


def _memory(trainer: Trainer, target: Topology, cost: StepCost, how: How) -> dict[str, Figure]:
    state, batch = bytes_per_device(trainer.state_spec), bytes_per_device(batch_spec(trainer))
    queued = IN_FLIGHT * batch  # of steps that the host has dispatched ahead
    total = cost.memory + queued if cost.memory else None
    parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(trainer.state_spec.params))
    figures = {"parameters": Figure(parameters, "", "analytic"),
               "state_bytes_per_device": Figure(state, "bytes", "analytic", "parameters, statistics and optimizer"),
               "batch_bytes_per_device": Figure(batch, "bytes", "analytic"),
               "memory_per_device": Figure(total, "bytes", how, f"the step and {IN_FLIGHT} queued batches")}
    if target.chip is None:
        return figures | {"fits": Figure(None, "", "analytic", "memory of the machine unknown")}
    capacity = target.chip.memory / target.chip.devices
    fits = cost.fits is not False and (total or 0) <= capacity
    return figures | {"device_memory": Figure(capacity, "bytes", "assumed", target.chip.source),
                      "fits": Figure(fits, "", how, "by the compiler" if cost.fits is False else "")}


def _work(trainer: Trainer, target: Topology, cost: StepCost, how: How) -> dict[str, Figure]:
    images = trainer.experiment.train.batch_size
    micro_batches = trainer.experiment.grad_accum_steps
    note = f"of one micro-batch, times {micro_batches}" if how == "compiled" and micro_batches > 1 else ""
    return {"flops_per_step_per_device": Figure(cost.flops, "FLOP", how, note),
            "bytes_per_step_per_device": Figure(cost.bytes, "bytes", how, note),
            "flops_per_image": Figure(cost.flops * target.devices / images, "FLOP", how,
                                      "forward, backward, optimizer")}


def _speed(experiment: Experiment, target: Topology, cost: StepCost, share: float | None) -> dict[str, Figure]:
    if target.chip is None:
        unknown = Figure(None, "", "analytic", "peak figures of CPUs unknown")
        return dict.fromkeys(("roofline_images_per_second", "images_per_second", "hours", "device_hours"), unknown)
    chip = target.chip
    flops, bandwidth = chip.flops / chip.devices, chip.bandwidth / chip.devices
    seconds = {"arithmetic": cost.flops / flops, "memory": cost.bytes / bandwidth}
    bound = max(seconds, key=seconds.get)
    roofline = experiment.train.batch_size / seconds[bound]
    how: How = "assumed" if share is None else "given"
    share = ROOFLINE_SHARE if share is None else share
    rate = roofline * share
    hours = experiment.steps * experiment.train.batch_size / rate / 3600
    note = f"{share:.0%} of the roofline ({how}); without evaluation, checkpoints and compilation"
    return {"peak_flops_per_device": Figure(flops, "FLOP/s", "assumed", f"bfloat16; {chip.source}"),
            "peak_bandwidth_per_device": Figure(bandwidth, "bytes/s", "assumed", chip.source),
            "roofline_images_per_second": Figure(roofline, "images/s", "analytic",
                                                 f"bound by {bound}; all-reduces assumed to overlap with it"),
            "roofline_mfu": Figure(seconds["arithmetic"] / seconds[bound], "", "analytic",
                                   "share of peak FLOP/s at the roofline"),
            "images_per_second": Figure(rate, "images/s", how, f"{share:.0%} of the roofline"),
            "hours": Figure(hours, "h", how, note),
            "device_hours": Figure(hours * target.devices, "h", how, note),
            "chip_hours": Figure(hours * target.chips, "h", how, note)}


def _reading(experiment: Experiment, target: Topology, rate: Figure, image_bytes: float | None) -> dict[str, Figure]:
    """What each host has to read and to send."""
    if rate.value is None:
        return {}
    how: How = "assumed" if image_bytes is None else "given"
    image_bytes = IMAGE_BYTES if image_bytes is None else image_bytes
    images, pixels = rate.value / target.hosts, math.prod(experiment.train.transform.shape)
    return {"images_per_second_per_host": Figure(images, "images/s", rate.how, rate.note),
            "read_bytes_per_second_per_host": Figure(images * image_bytes, "bytes/s", how,
                                                     f"{image_bytes / 1000:,.0f} kB per stored image ({how})"),
            "sent_bytes_per_second_per_host": Figure(images * pixels, "bytes/s", "analytic",
                                                     "decoded pixels, from the host to its devices")}


def _decoding(target: Topology, rate: Figure, decode_rate: float | None) -> dict[str, Figure]:
    if rate.value is None:
        return {}
    how: How = "assumed" if decode_rate is None else "given"
    decode_rate = DECODE_RATE if decode_rate is None else decode_rate
    note = f"{decode_rate:,.0f} images/s per core ({how})"
    cores = math.ceil(rate.value / target.hosts / decode_rate)
    figures = {"decode_cores_per_host": Figure(cores, "cores", how, note + ", no headroom")}
    if target.host_cores is not None:
        figures["host_virtual_cores"] = Figure(target.host_cores, "cores", "assumed",
                                               "Google Cloud machine types; two virtual cores are one physical core")
        figures["decode_keeps_up"] = Figure(2 * cores <= target.host_cores, "", how, note)
    return figures


def preflight_table(result: Preflight) -> Any:
    """The figures as a rich table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"on {result.topology}", title_justify="left")
    for column in ("", "", "how", ""):
        table.add_column(column, overflow="fold")
    colours = {"compiled": "green", "analytic": "cyan", "assumed": "yellow", "given": "blue"}
    for name, figure in result.figures.items():
        table.add_row(name.replace("_", " "), escape(_format(figure)), f"[{colours[figure.how]}]{figure.how}[/]",
                      escape(figure.note))
    return table


def _format(figure: Figure) -> str:
    value, unit = figure.value, figure.unit
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "bytes":
        return f"{value / 2**30:,.2f} GiB"
    if unit in ("FLOP", "FLOP/s", "bytes/s"):
        power = min(max(int(math.log10(max(value, 1)) // 3), 0), 5)
        return f"{value / 1000**power:,.1f} {' KMGTP'[power].strip()}{unit.replace('bytes', 'B')}"
    return f"{value:,.2f} {unit}" if isinstance(value, float) and value < 100 else f"{value:,.0f} {unit}".rstrip()
