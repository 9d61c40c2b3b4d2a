"""What a run would take on devices that are not here: whether it fits, how fast it can be, and for how long.

Each figure says where it comes from: ``compiled`` (the compiler's word on the run's own step), ``analytic`` (counted or
calculated from such and from makers' peak figures), ``assumed`` (nobody measured it here) or ``given``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax

from big_vision_lite.data.source import Described, Description
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.launch.analytic import count_step
from big_vision_lite.launch.compiled import Cost, batch_description, bytes_on_a_device, compile_step, devices_of
from big_vision_lite.launch.slices import Slice, slice_of
from big_vision_lite.training.job import Job
from big_vision_lite.training.loop import IN_FLIGHT

How = Literal["compiled", "analytic", "assumed", "given"]

ROOFLINE_SHARE = 0.6
"""Of the roofline's speed, that a run is assumed to reach."""
DECODED = 570.0
"""Images a second that one core is assumed to decode: docs/performance.md, JPEGs of 500x375, cropped to 224."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a preflight."""

    value: float | bool | str | None
    """None: nothing to tell it by."""
    unit: str
    how: How
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What a run would take on a slice."""

    topology: str
    figures: dict[str, Figure]

    @property
    def fits(self) -> bool | None:
        return self.figures["fits"].value

    def to_json(self) -> dict[str, Any]:
        return {"topology": self.topology,
                "figures": {name: dataclasses.asdict(figure) for name, figure in self.figures.items()}}


def described(experiment: Experiment, classes: int | None = None) -> Described:
    """What the step must know of the data: opened, or with ``classes`` described without it.

    Raises:
      UserError: the data is not here, and the number of classes is not given.
    """
    if classes is not None:
        if classes < 1:
            raise UserError(f"--classes {classes}; expected at least 1")
        return Description(tuple(f"class {i}" for i in range(classes)), True, "", 0, "")
    try:
        return experiment.train.open()
    except UserError as error:
        raise UserError(f"{error}; or give --classes N, to look at the step without its data") from None


def preflight(experiment: Experiment, topology: str, data: Described, decode_rate: float | None = None,
              share: float | None = None) -> Preflight:
    """Compile the run's own step for a slice, or count it, and say what follows.

    Args:
      topology: as `slice_of`. A TPU's step and that of ``cpu:N`` are compiled; that of GPUs is counted.
      data: of `described`.
      decode_rate: images a second that a core decodes, as `bvl bench input` or `bvl doctor` measure it.
      share: of the roofline's speed, that the run reaches.

    Raises:
      UserError: there is no such slice, the batch does not divide over it, or the step cannot be built.
    """
    for name, value in (("--decode-rate", decode_rate), ("--share", share)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} {value}; expected a number above 0")
    where = slice_of(topology)
    job = Job(experiment, data, devices_of(where))
    compiling = where.platform != "gpu"
    cost = compile_step(job) if compiling else count_step(job)
    figures = _shape(where) | _memory(job, where, cost, "compiled" if compiling else "analytic")
    if figures["fits"].value is not False:
        figures |= _work(job, where, cost, "compiled" if compiling else "analytic")
        figures |= _speed(experiment, where, cost, share)
        figures |= _cores(where, figures["images_per_second"], decode_rate)
    if compiling:
        figures["compile_seconds"] = Figure(round(cost.seconds, 1), "s", "compiled", "on this machine")
    return Preflight(where.name, figures)


def _shape(where: Slice) -> dict[str, Figure]:
    note = "accelerator types are sold by chips or by cores" if where.platform == "tpu" else ""
    return {"chips": Figure(where.chips, "", "given", note),
            "devices": Figure(where.devices, "", "analytic", "as JAX shows them"),
            "hosts": Figure(where.hosts, "", "assumed" if where.platform == "gpu" else "analytic",
                            "8 GPUs a host" if where.platform == "gpu" else "")}


def _memory(job: Job, where: Slice, cost: Cost, how: How) -> dict[str, Figure]:
    state, batch = bytes_on_a_device(job.description), bytes_on_a_device(batch_description(job))
    waiting = IN_FLIGHT * batch  # batches of steps that the host has handed over already
    total = cost.memory + waiting if cost.memory else None
    parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(job.description.params))
    figures = {"parameters": Figure(parameters, "", "analytic"),
               "state_bytes_per_device": Figure(state, "bytes", "analytic", "parameters, statistics and optimiser"),
               "batch_bytes_per_device": Figure(batch, "bytes", "analytic"),
               "memory_per_device": Figure(total, "bytes", how, f"the step, and {IN_FLIGHT} batches that wait")}
    if where.chip is None:
        return figures | {"fits": Figure(None, "", "analytic", "the memory of such a machine is not known")}
    room = where.chip.memory / where.chip.devices
    fits = cost.fits is not False and (total or 0) <= room
    return figures | {"device_memory": Figure(room, "bytes", "assumed", where.chip.source),
                      "fits": Figure(fits, "", how, "the compiler says so" if cost.fits is False else "")}


def _work(job: Job, where: Slice, cost: Cost, how: How) -> dict[str, Figure]:
    images = job.experiment.train.batch_size
    pieces = job.experiment.accumulate
    note = f"a loop over {pieces} pieces: one piece's, times {pieces}" if how == "compiled" and pieces > 1 else ""
    return {"flops_per_step_per_device": Figure(cost.flops, "FLOP", how, note),
            "bytes_per_step_per_device": Figure(cost.bytes, "bytes", how, note),
            "flops_per_image": Figure(cost.flops * where.devices / images, "FLOP", how, "forward, backward, optimiser")}


def _speed(experiment: Experiment, where: Slice, cost: Cost, share: float | None) -> dict[str, Figure]:
    if where.chip is None:
        nothing = Figure(None, "", "analytic", "no peak figures of such CPUs are known")
        return dict.fromkeys(("roofline_images_per_second", "images_per_second", "hours", "device_hours"), nothing)
    chip = where.chip
    flops, bandwidth = chip.flops / chip.devices, chip.bandwidth / chip.devices
    seconds = {"arithmetic": cost.flops / flops, "memory": cost.bytes / bandwidth}
    bound = max(seconds, key=seconds.get)
    roofline = experiment.train.batch_size / seconds[bound]
    reached = ROOFLINE_SHARE if share is None else share
    rate = roofline * reached
    hours = experiment.steps * experiment.train.batch_size / rate / 3600
    how: How = "assumed" if share is None else "given"
    note = f"{reached:.0%} of the roofline ({how}); without evaluations, checkpoints and compiling"
    return {"peak_flops_per_device": Figure(flops, "FLOP/s", "assumed", f"bfloat16; {chip.source}"),
            "peak_bandwidth_per_device": Figure(bandwidth, "bytes/s", "assumed", chip.source),
            "roofline_images_per_second": Figure(roofline, "images/s", "analytic",
                                                 f"bound by {bound}; sums over devices taken to hide behind it"),
            "roofline_mfu": Figure(seconds["arithmetic"] / seconds[bound], "", "analytic",
                                   "share of peak FLOP/s at the roofline"),
            "images_per_second": Figure(rate, "images/s", how, f"{reached:.0%} of the roofline"),
            "hours": Figure(hours, "h", how, note),
            "device_hours": Figure(hours * where.devices, "h", how, note),
            "chip_hours": Figure(hours * where.chips, "h", how, note)}


def _cores(where: Slice, rate: Figure, decode_rate: float | None) -> dict[str, Figure]:
    if rate.value is None:
        return {}
    how: How = "assumed" if decode_rate is None else "given"
    decoded = DECODED if decode_rate is None else decode_rate
    note = f"{decoded:,.0f} images/s a core ({how})"
    cores = math.ceil(rate.value / where.hosts / decoded)
    figures = {"decode_cores_per_host": Figure(cores, "cores", how, note + ", and nothing to spare")}
    if where.host_cores is not None:
        figures["host_virtual_cores"] = Figure(where.host_cores, "cores", "assumed",
                                               "Google Cloud's machine types; two virtual cores are one real one")
        figures["decode_keeps_up"] = Figure(2 * cores <= where.host_cores, "", how, note)
    return figures


def table(found: Preflight) -> Any:
    """The figures as a table of rich."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=f"on {found.topology}", title_justify="left")
    for column in ("", "", "how", ""):
        made.add_column(column, overflow="fold")
    colours = {"compiled": "green", "analytic": "cyan", "assumed": "yellow", "given": "blue"}
    for name, figure in found.figures.items():
        made.add_row(name.replace("_", " "), escape(_say(figure)), f"[{colours[figure.how]}]{figure.how}[/]",
                     escape(figure.note))
    return made


def _say(figure: Figure) -> str:
    value, unit = figure.value, figure.unit
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "bytes":
        return f"{value / 2**30:,.2f} GiB"
    if unit in ("FLOP", "FLOP/s", "bytes/s"):
        power = min(max(int(math.log10(max(value, 1)) // 3), 0), 5)
        return f"{value / 1000**power:,.1f} {' KMGTP'[power].strip()}{unit.replace('bytes', 'B')}"
    return f"{value:,.2f} {unit}" if isinstance(value, float) and value < 100 else f"{value:,.0f} {unit}".rstrip()
