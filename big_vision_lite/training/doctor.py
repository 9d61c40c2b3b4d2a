"""A look at an experiment before step 0: whether all that it needs is there, and whether data comes as fast as it is
used. Every check is made, so that all problems are told at once."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from big_vision_lite.data.cores import usable_cores
from big_vision_lite.data.inspect import spread
from big_vision_lite.data.interpreter_lock import lock_held
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Records
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.head import Head
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.job import Job

SAMPLE = 64
"""Images of each split that are decoded."""
SECONDS = 4.0
"""Of each measurement of speed."""
ENOUGH = 1.2
"""How many times as fast as the devices need it data should come: speed varies."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""
    """What to do, where it is not ok."""
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


def doctor(experiment: Experiment, workdir: Path | None = None, seconds: float = SECONDS) -> list[Finding]:
    """All checks, in order. It takes the run's own first steps on these devices, and leaves nothing behind.

    Args:
      workdir: where the run would be; for the space on its disk.
      seconds: of each measurement.
    """
    return list(_checks(experiment, workdir, seconds))


def _checks(experiment: Experiment, workdir: Path | None, seconds: float) -> Iterator[Finding]:
    mesh = yield from _mesh(experiment)
    train = yield from _opened("train", experiment.train)
    job = None
    if train is not None and mesh is not None:
        try:
            # Evaluations are looked at one by one; a fault in one would keep the job from being made.
            job = Job(dataclasses.replace(experiment, evals={}), described=train)
            job.experiment = experiment
            size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(job.description.params))
            yield Finding("model", "ok", f"{size / 1e6:.2f} M parameters for {len(train.classes):,} classes")
        except UserError as error:
            yield Finding("model", "problem", str(error))
    splits = {"train": train}
    for name, inputs in experiment.evals.items():
        open_it = inputs.open if job is None else lambda name=name: job.open_eval(name)[1]  # checks classes, too
        splits[f"evals.{name}"] = yield from _opened(f"evals.{name}", inputs, open_it)
    for name, records in splits.items():
        if records is not None:
            yield _decoded(name, experiment.train if name == "train" else experiment.evals[name[6:]], records,
                           experiment.head)
    if job is not None:
        yield _memory(experiment, job)
        if workdir is not None:
            yield _disk(job, workdir)
        yield from _speed(job, seconds)


def exit_code(findings: list[Finding]) -> int:
    """1 when there is a problem, else 0."""
    return int(any(finding.status == "problem" for finding in findings))


def run(experiment: Experiment, workdir: Path | None = None) -> int:
    """Print all findings as a table; returns the exit code."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.status("checking"):
        findings = doctor(experiment, workdir)
    console.print(table(findings))
    return exit_code(findings)


def table(findings: list[Finding]) -> Any:
    """The findings as a table of rich."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(title="before step 0", title_justify="left")
    for column in ("check", "", "found", "what to do"):
        made.add_column(column, overflow="fold")
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        made.add_row(finding.check, f"[{colours[finding.status]}]{finding.status}[/]", escape(finding.found),
                     escape(finding.advice))
    return made


def _mesh(experiment: Experiment) -> Iterator[Finding]:
    """Devices, and whether batches divide over them. Returns the mesh, or None when the run could not be on it."""
    try:
        mesh = experiment.mesh.build()
    except UserError as error:
        yield Finding("devices", "problem", str(error))
        return None
    device = jax.devices()[0]
    yield Finding("devices", "ok", f"{mesh.size} {device.platform} ({device.device_kind}), {jax.process_count()} "
                                   "process(es)")
    fits = True
    for name, inputs, pieces in (("train", experiment.train, experiment.accumulate),
                                 *((f"evals.{name}", inputs, 1) for name, inputs in experiment.evals.items())):
        try:
            meshes.check_batch(name, inputs.batch_size, mesh, pieces)
        except UserError as error:
            fits = fits and name != "train"
            yield Finding(f"{name} batch", "problem", str(error))
    return mesh if fits else None


def _opened(name: str, inputs: Input, open_it: Callable[[], Records] | None = None) -> Iterator[Finding]:
    """Whether a split is there, with the classes of the model. Returns its records, or None."""
    try:
        records = (open_it or inputs.open)()
    except UserError as error:
        yield Finding(name, "problem", str(error))
        return None
    says = f"{len(records):,} images, {len(records.classes):,} classes"
    if not len(records):
        yield Finding(name, "problem", says, "an empty split; see the source and its curation")
        return None
    few = name == "train" and len(records) < inputs.batch_size
    yield Finding(name, "warning" if few else "ok",
                  says + (f"; a batch of {inputs.batch_size} holds some of them twice" if few else ""),
                  "lower --train.batch-size, or use more images" if few else "")
    return records


def _decoded(name: str, inputs: Input, records: Records, head: Head) -> Finding:
    """Whether a sample of images goes through the transform and the head's targets."""
    indices, bad = spread(len(records), SAMPLE), []
    out = np.empty(inputs.transform.shape, np.uint8)
    for index in indices:
        try:
            head.targets(inputs.transform(records[index], np.random.default_rng(index), out))
        except BadImageError as error:
            bad.append(str(error))
        except UserError as error:
            return Finding(f"{name} images", "problem", str(error))
    if not bad:
        return Finding(f"{name} images", "ok", f"{len(indices)} of {len(records):,} decoded")
    found = f"{len(bad)} of {len(indices)}: {bad[0]}"
    mask = inputs.on_bad_image == "mask"
    return Finding(f"{name} images", "warning" if mask else "problem", found,
                   "they will be masked and counted" if mask else "repair or remove them, or set on_bad_image=mask",
                   {"bad": float(len(bad)), "sample": float(len(indices))})


def _memory(experiment: Experiment, job: Job) -> Finding:
    """Batches kept ready, against the memory that is free."""
    inputs = experiment.train
    rows = inputs.batch_size // jax.process_count()
    ahead = max(inputs.prefetch, _threads(inputs))
    batches = inputs.workers * (ahead + inputs.prefetch) if inputs.workers else ahead
    needed, free = batches * rows * math.prod(inputs.transform.shape), _free_memory()
    return _room("memory", f"{batches} batches ahead", needed, free,
                 "lower --train.prefetch, --train.threads or --train.workers")


def _disk(job: Job, workdir: Path) -> Finding:
    """Room for the checkpoints: those kept, and one more while it is written."""
    if ":/" in str(workdir)[:6]:
        return Finding("disk", "ok", f"{workdir} is a bucket; its room is not looked at")
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(job.description))
    needed = size * (job.experiment.keep + 1)
    place = workdir.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding("disk", "problem", f"cannot write to {place}", "choose another --workdir")
    return _room("disk", f"{job.experiment.keep + 1} checkpoints in {place}", needed, shutil.disk_usage(place).free,
                 "free some space, choose another --workdir or lower --keep")


def _room(check: str, what: str, needed: int, free: int | None, advice: str) -> Finding:
    """A problem when it does not fit, a warning when it takes more than half; ``free`` None: nobody knows."""
    figures = {"needed": float(needed), "free": float(free or 0)}
    found = f"{_size(needed)} for {what}" + ("" if free is None else f", {_size(free)} free")
    if free is None or needed <= free / 2:
        return Finding(check, "ok", found, "", figures)
    return Finding(check, "problem" if needed > free else "warning", found, advice, figures)


def _speed(job: Job, seconds: float) -> Iterator[Finding]:
    """Images a second that the devices use and that the pipeline makes, and what limits it."""
    inputs = job.experiment.train
    rows = inputs.batch_size // jax.process_count()
    try:
        need, compiling, loss = _step_rate(job, rows, seconds)
    except BadImageError:
        return  # told of already
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        yield Finding("step", "problem", f"the devices have too little memory: {str(error).splitlines()[0][:150]}",
                      "raise --accumulate, or lower --train.batch-size")
        return
    figures = {"images_per_second": need, "first_step": compiling}
    found = f"{need:,.0f} images/s a process; loss {loss:.4g}; {compiling:.0f} s to compile and run the first step"
    wrong = "" if math.isfinite(loss) else "the loss is not finite; see the learning rate and the labels"
    yield Finding("step", "problem" if wrong else "ok", found, wrong, figures)
    have = _input_rate(job, rows, seconds)
    held = lock_held(job._maker(inputs, job.data, job.experiment.seed), seconds / 2)
    yield pipeline_finding(inputs, need, have, held)


def pipeline_finding(inputs: Input, need: float, have: float, held: dict[str, float] | None,
                     cores: int | None = None) -> Finding:
    """What two speeds mean, and what to do.

    Args:
      need, have: images a second that a process's devices use, and that its pipeline makes.
      held: of `lock_held`; None: not measured.
      cores: that this process may use; None: as it is here.
    """
    cores = cores or usable_cores()
    figures = {"need": need, "have": have}
    found = f"{have:,.0f} images/s made, {need:,.0f} used"
    ceiling = math.inf
    if held:
        ceiling = 1 / held["held"]
        figures |= {**held, "ceiling": ceiling}
        found += (f"; an image takes {held['alone'] * 1e6:,.0f} us and holds Python's lock for up to "
                  f"{held['held'] * 1e6:,.0f} of them: threads of one process reach about {ceiling:,.0f} images/s "
                  "on any number of cores" + (" (more: other programs took the cores)" if held["busy"] > 0.15 else ""))
    if have >= ENOUGH * need:
        return Finding("pipeline", "ok", found, "", figures)
    busy = min(_threads(inputs) * max(inputs.workers, 1), cores)
    wanted = math.ceil(ENOUGH * need * busy / have)  # cores, as far as speed grows with them
    wait = max(1 - have / need, 0)
    found += f"; devices would wait for data {wait:.0%} of the time" if wait else "; with little to spare"
    advice = []
    if ENOUGH * need > ceiling and inputs.workers * ceiling < ENOUGH * need and cores > 1:
        workers = min(math.ceil(ENOUGH * need / ceiling), cores)
        advice.append(f"set --train.workers={workers} --train.threads={max(cores // workers, 1)}: threads of one "
                      "process wait for each other")
    elif busy < cores:
        advice.append(f"set --train.threads={min(max(wanted // max(inputs.workers, 1), 1), cores)}")
    if wanted > cores:
        advice.append(f"it needs about {wanted} cores and {cores} are here: store images closer to the size that is "
                      "used (bvl data prepare), use a smaller crop, or a machine with more cores a device")
    if jax.default_backend() == "cpu":
        advice.append("devices and pipeline share these cores, so that some waiting is no loss")
    return Finding("pipeline", "warning", found, "; ".join(advice) or "raise --train.prefetch", figures)


def _step_rate(job: Job, rows: int, seconds: float) -> tuple[float, float, float]:
    """Images a second of the step alone, seconds of its first call, and the loss of the last."""
    batch = job.to_devices(job._maker(job.experiment.train, job.data, job.experiment.seed)(0))
    state, figures = job.init(), {}

    def step() -> None:
        nonlocal state, figures
        state, figures = job.train_step(state, batch)
        jax.block_until_ready(figures)

    start = time.perf_counter()
    step()
    compiling = time.perf_counter() - start
    return _rate(step, rows, seconds), compiling, float(figures["loss"])


def _input_rate(job: Job, rows: int, seconds: float) -> float:
    """Images a second of the run's own stream of batches, with idle devices."""
    stream = job.batches(job.experiment.train, job.data, job.experiment.seed, 0, 2**40)
    buffered = max(job.experiment.train.prefetch, _threads(job.experiment.train))
    start = time.perf_counter()
    for taken in range(2 * buffered):  # what was made ahead is no measure of speed
        next(stream)
        if taken and time.perf_counter() - start > seconds:
            break
    return _rate(lambda: next(stream), rows, seconds)


def _rate(work: Callable[[], object], images: int, seconds: float) -> float:
    """Images a second of what handles so many at a call."""
    calls, start, now = 0, time.perf_counter(), 0.0
    while calls < 2 or now - start < seconds:
        work()
        calls, now = calls + 1, time.perf_counter()
    return calls * images / (now - start)


def _threads(inputs: Input) -> int:
    return inputs.threads or min(16, usable_cores())


def _free_memory() -> int | None:
    """Bytes; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
