"""Checks of an experiment before step 0: is everything there that it needs, and is the data pipeline fast enough? All
checks are made, so that all problems are reported at once."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from rich.filesize import decimal

from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Dataset
from big_vision_lite.data.tools.inspect import evenly_spaced
from big_vision_lite.errors import BadImageError, UserError, first_line
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.head import Head
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.system.memory import free_memory
from big_vision_lite.system.paths import scheme
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.workdir import run_folder

SAMPLE = 64
"""Images decoded per split."""
SECONDS = 4.0
"""Duration of each measurement of speed."""
HEADROOM = 1.2
"""The pipeline should be this many times as fast as the devices: speed varies."""
SCALES = 1.4
"""Least speed-up by doubling the threads for which they are said to scale."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""
    """What to do, where it is not ok."""
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    """Measured values."""


def doctor(experiment: Experiment, workdir: Path | None = None, seconds: float = SECONDS) -> Iterator[Finding]:
    """All checks, in order. Takes the run's first steps on its devices, and leaves nothing behind.

    Args:
      workdir: where the run would be; its disk is checked for space.
      seconds: duration of each measurement.
    """
    mesh = yield from _mesh(experiment)
    train = yield from _opened("train", experiment.train, experiment.train.open)
    trainer = None
    if train is not None and mesh is not None:
        try:
            # Evaluations are checked one by one below: a fault in one must not keep the trainer from being made.
            trainer = Trainer(dataclasses.replace(experiment, evals={}), train)
            trainer.experiment = experiment
            size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trainer.state_spec.params))
            yield Finding("model", "ok", f"{size / 1e6:.2f} M parameters for {len(train.classes):,} classes")
        except UserError as error:
            yield Finding("model", "problem", str(error))
    splits = {"train": (experiment.train, train)}
    for name, inputs in experiment.evals.items():
        open_eval = inputs.open if trainer is None else lambda name=name: trainer.open_eval(name)[1]  # checks classes
        splits[f"evals.{name}"] = inputs, (yield from _opened(f"evals.{name}", inputs, open_eval))
    for name, (inputs, dataset) in splits.items():
        if dataset is not None:
            yield _decoded(name, inputs, dataset, experiment.head)
    if trainer is not None:
        yield _memory(experiment, trainer)
        if workdir is not None:
            yield _disk(trainer, workdir)
        yield from _speed(trainer, seconds)


def print_findings(experiment: Experiment, workdir: Path | None = None) -> int:
    """Make all checks and print a table; returns the exit code, 1 when there is a problem."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    with console.status("checking"):
        findings = list(doctor(experiment, workdir))
    table = Table(title="before step 0", title_justify="left")
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        table.add_row(finding.check, f"[{colours[finding.status]}]{finding.status}[/]", escape(finding.found),
                      escape(finding.advice))
    console.print(table)
    return int(any(finding.status == "problem" for finding in findings))


def _mesh(experiment: Experiment) -> Iterator[Finding]:
    """Devices, and whether batches divide over them. Returns the mesh, or None when the run cannot use it."""
    try:
        mesh = experiment.mesh.build()
    except UserError as error:
        yield Finding("devices", "problem", str(error))
        return None
    device = jax.devices()[0]
    yield Finding("devices", "ok", f"{mesh.size} {device.platform} ({device.device_kind}), {jax.process_count()} "
                                   "process(es)")
    divides = True
    for name, inputs, micro_batches in (("train", experiment.train, experiment.grad_accum_steps),
                                        *((f"evals.{name}", inputs, 1) for name, inputs in experiment.evals.items())):
        try:
            meshes.check_batch(name, inputs.batch_size, mesh, micro_batches)
        except UserError as error:
            divides = divides and name != "train"
            yield Finding(f"{name} batch", "problem", str(error))
    return mesh if divides else None


def _opened(name: str, inputs: Input, open_split: Callable[[], Dataset]) -> Iterator[Finding]:
    """Whether a split exists, with the classes of the model. Returns its data, or None."""
    try:
        dataset = open_split()
    except UserError as error:
        yield Finding(name, "problem", str(error))
        return None
    size = f"{len(dataset):,} images, {len(dataset.classes):,} classes"
    if not len(dataset):
        yield Finding(name, "problem", size, "an empty split; see the source and its curation")
        return None
    if name == "train" and len(dataset) < inputs.batch_size:
        yield Finding(name, "warning", f"{size}; a batch of {inputs.batch_size} holds some of them twice",
                      "lower --train.batch-size, or use more images")
    else:
        yield Finding(name, "ok", size)
    for note in dataset.notes:
        yield Finding(name, "warning", note, "if this is not as it should be, rename files or change the source")
    return dataset


def _decoded(name: str, inputs: Input, dataset: Dataset, head: Head) -> Finding:
    """Whether a sample of images passes the transform and the head's targets."""
    indices, bad, head = evenly_spaced(len(dataset), SAMPLE), [], head.for_data(dataset)
    out = np.empty(inputs.transform.shape, np.uint8)
    for index in indices:
        try:
            head.targets(inputs.transform(dataset[index], np.random.default_rng(index), out))
        except BadImageError as error:
            bad.append(str(error))
        except UserError as error:
            return Finding(f"{name} images", "problem", str(error))
    if not bad:
        return Finding(f"{name} images", "ok", f"{len(indices)} of {len(dataset):,} decoded")
    mask = inputs.on_bad_image == "mask"
    return Finding(f"{name} images", "warning" if mask else "problem", f"{len(bad)} of {len(indices)}: {bad[0]}",
                   "they will be masked and counted" if mask else "repair or remove them, or set on_bad_image=mask",
                   {"bad": float(len(bad)), "sample": float(len(indices))})


def _memory(experiment: Experiment, trainer: Trainer) -> Finding:
    """Prefetched batches against the free memory."""
    inputs = experiment.train
    rows = inputs.batch_size // jax.process_count()
    ahead = max(inputs.prefetch, inputs.thread_count)
    batches = inputs.workers * (ahead + inputs.prefetch) if inputs.workers else ahead
    needed = batches * rows * math.prod(inputs.transform.shape)
    return _space("memory", f"{batches} batches ahead", needed, free_memory(),
                  "lower --train.prefetch, --train.threads or --train.workers")


def _disk(trainer: Trainer, workdir: Path) -> Finding:
    """Space for the checkpoints that are kept, and one that is being written."""
    if scheme(workdir) == "gs:/":
        return Finding("disk", "ok", f"{workdir} is a bucket; its space is not checked")
    try:
        run_folder(workdir)
    except UserError as error:
        return Finding("disk", "problem", str(error))
    checkpoints = trainer.experiment.max_checkpoints + 1
    needed = checkpoints * sum(math.prod(leaf.shape) * leaf.dtype.itemsize
                               for leaf in jax.tree.leaves(trainer.state_spec))
    folder = workdir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding("disk", "problem", f"cannot write to {folder}", "choose another --workdir")
    return _space("disk", f"{checkpoints} checkpoints in {folder}", needed, shutil.disk_usage(folder).free,
                  "free some space, choose another --workdir or lower --max-checkpoints")


def _space(check: str, content: str, needed: int, free: int | None, advice: str) -> Finding:
    """A problem when it does not fit, a warning when it takes more than half; ``free`` None: unknown."""
    values = {"needed": float(needed), "free": float(free or 0)}
    found = f"{decimal(needed)} for {content}" + ("" if free is None else f", {decimal(free)} free")
    if free is None or needed <= free / 2:
        return Finding(check, "ok", found, "", values)
    return Finding(check, "problem" if needed > free else "warning", found, advice, values)


def _speed(trainer: Trainer, seconds: float) -> Iterator[Finding]:
    """Images/s per process of the devices and of the data pipeline, and what limits the latter."""
    inputs = trainer.experiment.train
    try:
        device_rate, first_step, loss = _device_rate(trainer, seconds)
    except BadImageError:
        return  # reported before
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        yield Finding("step", "problem", f"the devices have too little memory: {first_line(error)}",
                      "raise --grad-accum-steps, or lower --train.batch-size")
        return
    finite = math.isfinite(loss)
    yield Finding("step", "ok" if finite else "problem",
                  f"{device_rate:,.0f} images/s per process; loss {loss:.4g}; {first_step:.0f} s to compile and run "
                  "the first step", "" if finite else "the loss is not finite; see the learning rate and the labels",
                  {"images_per_second": device_rate, "first_step": first_step})
    threads, cores = inputs.thread_count, usable_cores()
    rates = {threads: _input_rate(trainer, inputs, seconds)}
    other = 2 * threads if 2 * threads * max(inputs.workers, 1) <= cores else threads // 2
    if other and rates[threads] < HEADROOM * device_rate:
        rates[other] = _input_rate(trainer, dataclasses.replace(inputs, threads=other), seconds)
    yield pipeline_finding(inputs, device_rate, rates, cores)


def pipeline_finding(inputs: Input, device_rate: float, rates: dict[int, float], cores: int) -> Finding:
    """Compare the speed of pipeline and devices, and advise.

    Args:
      device_rate: images/s per process that the devices use.
      rates: images/s that the pipeline makes, by number of threads: the configured number and, where that is too slow,
        half or twice as many.
      cores: that this process may use.
    """
    rate, workers = rates[inputs.thread_count], max(inputs.workers, 1)
    values = {"device_rate": device_rate, "pipeline_rate": rate}
    found = f"{rate:,.0f} images/s made, {device_rate:,.0f} used"
    if rate >= (target := HEADROOM * device_rate):
        return Finding("pipeline", "ok", found, "", values)
    wait = max(1 - rate / device_rate, 0)
    found += f"; devices would wait for data {wait:.0%} of the time" if wait else "; with little to spare"
    scales = True
    if len(rates) > 1:
        few, many = sorted(rates)
        scales = rates[many] >= SCALES * rates[few]
        values["speedup"] = rates[many] / rates[few]
        found += f"; {many} threads make {values['speedup']:.2f} times as many as {few}"
    advice = []
    if not scales and workers < cores:
        count = min(max(math.ceil(target * workers / max(rates.values())), workers + 1), cores)
        advice.append(f"set --train.workers={count} --train.threads={max(cores // count, 1)}: threads of one process "
                      "wait for each other")
    else:
        busy = min(inputs.thread_count * workers, cores)
        needed = math.ceil(target * busy / rate)
        if busy < cores:
            advice.append(f"set --train.threads={min(max(needed // workers, 1), cores)}")
        if needed > cores:
            advice.append(f"it needs about {needed} cores and {cores} are here: store images closer to the size that "
                          "is used (bvl data prepare), use a smaller crop, or a machine with more cores per device")
    if jax.default_backend() == "cpu":
        advice.append("devices and pipeline share these cores, so that some waiting is no loss")
    return Finding("pipeline", "warning", found, "; ".join(advice) or "raise --train.prefetch", values)


def _device_rate(trainer: Trainer, seconds: float) -> tuple[float, float, float]:
    """Images/s of the step alone, seconds of its first call, and the loss of the last."""
    maker = trainer.batch_maker(trainer.experiment.train, trainer.data, trainer.experiment.seed)
    batch = trainer.to_devices(maker(0))
    state, metrics = trainer.init(), {}

    def step() -> None:
        nonlocal state, metrics
        state, metrics = trainer.train_step(state, batch)
        jax.block_until_ready(metrics)

    start = time.perf_counter()
    step()
    first_step = time.perf_counter() - start
    return _rate(step, maker.rows, seconds), first_step, float(metrics["loss"])


def _input_rate(trainer: Trainer, inputs: Input, seconds: float) -> float:
    """Images/s of the training batches, with idle devices."""
    stream = trainer.batches(inputs, trainer.data, trainer.experiment.seed, 0, 2**40)
    start = time.perf_counter()
    for taken in range(2 * max(inputs.prefetch, inputs.thread_count)):  # batches made ahead would distort the rate
        next(stream)
        if taken and time.perf_counter() - start > seconds:
            break
    return _rate(lambda: next(stream), inputs.batch_size // jax.process_count(), seconds)


def _rate(work: Callable[[], object], images: int, seconds: float) -> float:
    """Images/s of a function that handles ``images`` per call."""
    calls, start, now = 0, time.perf_counter(), 0.0
    while calls < 2 or now - start < seconds:
        work()
        calls, now = calls + 1, time.perf_counter()
    return calls * images / (now - start)
