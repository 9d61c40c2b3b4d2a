"""The one training loop. It reads top to bottom, and does not know which task it trains."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax

from big_vision_lite import config
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.remote import place
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.distributed import all_agree_to_stop, is_first
from big_vision_lite.training.job import Job
from big_vision_lite.training.profiling import Profiler
from big_vision_lite.training.progress import Clock, Display, device_memory
from big_vision_lite.training.records import MetricWriter, describe_run, read_metrics, read_run
from big_vision_lite.training.wandb import WandB
from big_vision_lite.training.watchdog import Watchdog
from big_vision_lite.training.workdir import claim, keep_description, wait_until_there

IN_FLIGHT = 2
"""Steps handed to the devices before the host looks at the oldest one's loss."""


class Stopped(Exception):
    """A signal asked the run to end; its state is saved. ``code`` is the exit code by convention."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}, which is saved; the same "
                         "command goes on from there")
        self.code = 128 + signum


def train(experiment: Experiment, workdir: Path, profile: str | None = None, watchdog: float = 0,
          wandb: str | None = None) -> dict[str, float]:
    """Run an experiment, or what is left of it, and return the figures of its last evaluation.

    Leaves config.json, data.json, run.json, metrics.jsonl, tensorboard/, checkpoints/ and predictions.png. Of several
    processes the first one writes them, and each its part of the checkpoints.

    Args:
      profile: steps to profile, as FIRST:LAST; process 0 leaves them in profile/.
      watchdog: seconds after which a run that stands still ends itself; 0: never.
      wandb: project of Weights & Biases in which the figures are shown too.

    Raises:
      UserError: bad input, a loss that is not finite, or a disk that is full. What was saved stays.
      Stopped: SIGTERM or SIGINT came.
    """
    began = time.perf_counter()
    workdir = place(workdir)
    steps, batch_size = experiment.steps, experiment.train.batch_size
    profiler = Profiler(profile, workdir / "profile")
    job = Job(experiment)
    for name in experiment.evals:
        job.open_eval(name)  # a split that is missing is an error now, not after hours
    first_eval, picture = next(iter(experiment.evals), None), workdir / "predictions.png"
    resolved = claim(workdir, experiment)
    data_found = keep_description(workdir, job.data)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir / "checkpoints", experiment.keep)))
        found: list[str] = []
        start, state, data = checkpoints.restore_newest(job.description, found.append)
        state = state if start else job.init()
        step = saved = logged = start
        metrics = stack.enter_context(contextlib.closing(MetricWriter(
            workdir, start, quiet=not is_first(), board=None if wandb is None else partial(WandB, wandb, resolved))))
        display = stack.enter_context(Display(steps, start, quiet=not is_first()))
        received = stack.enter_context(_signals())
        watch = stack.enter_context(Watchdog(watchdog, lambda: _kept(saved)))
        job.beat = watch.beat
        stack.enter_context(profiler)

        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        display.say(f"{workdir}: {len(job.data):,} images of {len(job.data.classes)} classes, {parameters / 1e6:.2f} M "
                    f"parameters, {jax.device_count()} {jax.devices()[0].platform} device(s)"
                    + (f", going on from step {start}" if start else ""))
        for line in (*found, *filter(None, [job.taken_over])):
            display.say(line)
        for noise in data_found["noise"]:
            display.say(f"label noise: of {noise['labels']:,} labels {noise['precision']:.2%} are right; "
                        f"{noise['recall']:.2%} of the true ones are given")
        run = describe_run(seed=experiment.seed, data=job.data.fingerprint, images=len(job.data),
                           noise=data_found["noise"])
        earlier = read_run(workdir) if start else {}
        before, blocked = earlier.get("wall_seconds", 0.0), earlier.get("checkpoint_seconds", 0.0)
        rate = experiment.optimizer.schedule.build(steps)
        results: dict[str, float] = {}
        clock, pending = Clock(), collections.deque()
        bad_images = data.get("bad_images", 0)
        stream = job.batches(experiment.train, job.data, experiment.seed, start, steps)

        while step < steps:
            with clock.waiting():
                batch = next(stream)
            profiler.before(step + 1)
            state, figures = job.train_step(state, job.to_devices(batch))
            step += 1
            profiler.after(step, figures)
            watch.beat(step)
            bad_images += int((~batch["mask"]).sum())
            pending.append((step, figures))
            while len(pending) > IN_FLIGHT:
                _check(*pending.popleft(), saved)
            if step == start + 1:
                jax.block_until_ready(figures)
                run["seconds_to_first_step"] = round(time.perf_counter() - began, 2)
                display.say(f"first step after {run['seconds_to_first_step']:.1f} s, of which compiling and running "
                            f"it {clock.lap()[0]:.1f} s")
                logged = step
            display.step(step)

            last = step == steps
            log = last or step % experiment.log_every == 0
            evaluate = last or (experiment.eval_every and step % experiment.eval_every == 0)
            stop = None if last else _asked_to_stop(received, step)  # once: a signal may come at any line below
            save = last or step % experiment.save_interval == 0 or stop is not None
            if log or save:
                while pending:
                    _check(*pending.popleft(), saved)
            if log:
                seconds, waited = clock.lap()
                speed = (step - logged) * batch_size / seconds
                logged = step
                line = {**{key: float(value) for key, value in figures.items()},
                        "learning_rate": experiment.optimizer.learning_rate * float(rate(step - 1)),
                        "images_seen": step * batch_size, "images_per_second": speed, "data_wait": waited,
                        **device_memory()}
                if bad_images:
                    line["bad_images"] = bad_images
                metrics.write(step, line)
                display.report(step, line, (steps - step) * batch_size / speed if speed else 0.0)
            with clock.pause():
                if evaluate:
                    results = _evaluate(job, state, step, saved, display)
                    metrics.write(step, results)
                    if first_eval:
                        _draw(job, state, first_eval, picture, display)
                        metrics.picture(step, f"{first_eval}/predictions", picture)
                if save:
                    wait_until_there(workdir, display.say)
                    metrics.sync()
                    save_began = time.perf_counter()
                    checkpoints.settle(display.say)
                    checkpoints.save(step, state, resolved, {"step": step, "bad_images": bad_images})
                    blocked += time.perf_counter() - save_began
                    metrics.chart(step, {"checkpoint_seconds": blocked})
                    saved = step
                    run |= {"step": step, "images_seen": step * batch_size, "epochs": step * batch_size / len(job.data),
                            "bad_images": bad_images, "checkpoint_seconds": round(blocked, 3),
                            "wall_seconds": round(before + time.perf_counter() - began, 1)}
                    _write_run(workdir, run)
            if stop is not None:
                checkpoints.wait()
                raise Stopped(stop, step)

        checkpoints.wait()
        if start == steps:
            display.say(f"all {steps} steps were done before; nothing is left to train")
            run, results = read_run(workdir), last_results(workdir)
            if first_eval:
                _draw(job, state, first_eval, picture, display)
        run |= {"results": results, "wall_seconds": round(before + time.perf_counter() - began, 1)}
        _write_run(workdir, run)
        display.say(f"done in {run['wall_seconds']:.0f} s; everything is in {workdir}")
    return results


def _draw(job: Job, state, name: str, picture: Path, display: Display) -> None:
    """The picture of an evaluation: drawn elsewhere, for the workdir may go away meanwhile, then put in its place."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / picture.name
        job.draw(state, name, made)
        wait_until_there(picture.parent, display.say)
        if is_first():
            picture.write_bytes(made.read_bytes())


def _evaluate(job: Job, state, step: int, saved: int, display: Display) -> dict[str, float]:
    results = {}
    for name in job.experiment.evals:
        start = time.perf_counter()
        try:
            scored = job.score(state, name)
        except UserError as error:
            raise UserError(f"evaluation {name} at step {step}: {error}; {_kept(saved)}") from error
        main = job.experiment.head.main_metric(job.data)
        display.say(f"step {step}: {name} {main} {scored[main]:.4f}, loss {scored['loss']:.4f} on {scored['images']:,} "
                    f"images in {time.perf_counter() - start:.1f} s")
        results |= {f"{name}/{key}": value for key, value in scored.items()}
    for name, probe in job.experiment.probes.items():
        start = time.perf_counter()
        found = probe.run(job, state.best_params, state.stats)
        said = ", ".join(f"{key} {value:.4f}" for key, value in found.items() if "/" not in key)
        display.say(f"step {step}: {name} {said} in {time.perf_counter() - start:.1f} s")
        results |= {f"{name}/{key}": value for key, value in found.items()}
    return results


def _check(step: int, figures: dict[str, jax.Array], saved: int) -> None:
    """Raises: UserError when a step's loss or gradient is not finite."""
    for name in ("loss", "grad_norm"):
        value = float(figures[name])
        if not math.isfinite(value):
            before = f"steps {saved + 1} to {step - 1} were finite, " if step > saved + 1 else ""
            raise UserError(f"{name} is {value} at step {step}; {before}{_kept(saved)}; lower "
                            "--optimizer.learning-rate, warm up for longer or set --optimizer.clip")


def _kept(saved: int) -> str:
    return f"the checkpoint of step {saved} is kept" if saved else "no checkpoint was saved yet"


def last_results(workdir: Path) -> dict[str, float]:
    """The figures of the last evaluation in metrics.jsonl."""
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if any("/" in key for key in line)]
    return {key: value for key, value in lines[-1].items() if key != "step"} if lines else {}


def _write_run(workdir: Path, run: dict) -> None:
    if is_first():
        config.write(workdir / "run.json", json.dumps(run, indent=2) + "\n")


def _asked_to_stop(received: list[int], step: int) -> int | None:
    """The signal that asks this run to end after this step; of several processes it may have come to any."""
    if jax.process_count() == 1:
        return received[0] if received else None
    return signal.SIGTERM if all_agree_to_stop(step) else None


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one is obeyed at once.

    Of several processes JAX itself watches for SIGTERM, and tells the others; a SIGINT becomes one.
    """
    together = jax.process_count() > 1
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(signum: int, frame: object) -> None:
        received.append(signum)
        for number, handler in old.items():
            signal.signal(number, handler)
        if together:
            signal.raise_signal(signal.SIGTERM)

    watched = (signal.SIGINT,) if together else (signal.SIGTERM, signal.SIGINT)
    old = {number: signal.signal(number, note) for number in watched}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
