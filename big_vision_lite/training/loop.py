"""The training loop. It reads from top to bottom, and does not know which task it trains."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import math
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.details import Details
from big_vision_lite.experiment import Experiment
from big_vision_lite.system import cpu
from big_vision_lite.system.atomic import write_bytes, write_text
from big_vision_lite.system.paths import as_path
from big_vision_lite.system.signals import Stopped, collect_signals, hear_signals
from big_vision_lite.training.best import MainScore
from big_vision_lite.training.calls import Call, Dispatcher
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.distributed import all_agree_to_stop, is_primary
from big_vision_lite.training.metrics import (
    MetricWriter,
    describe_run,
    last_results,
    read_metrics,
    read_run,
    write_details,
)
from big_vision_lite.training.profiling import Profiler
from big_vision_lite.training.progress import Clock, Display, Forecast, device_memory
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.trunk import trunk_state
from big_vision_lite.training.wandb import WandB
from big_vision_lite.training.watchdog import Watchdog
from big_vision_lite.training.workdir import OwnedWorkdir, open_workdir, run_folder, save_dataset_info

IN_FLIGHT = 2
"""Calls dispatched to the devices before the host looks at the losses of the oldest."""


class Turn(NamedTuple):
    """What a run in `training` waits for: the results of a call of the devices."""

    step: int
    """Steps done before."""
    state: TrainState
    call: Call
    dispatcher: Dispatcher


def train(experiment: Experiment, workdir: Path, profile: str | None = None, watchdog: float = 0,
          wandb: str | None = None, patience: float = 0) -> dict[str, float | None]:
    """Run an experiment, or the rest of it, and return the metrics of its last evaluation.

    Writes config.json, data.json, run.json, metrics.jsonl, tensorboard/, checkpoints/ and predictions.png. Of several
    processes the first writes them; all write their parts of checkpoints.

    Args:
      profile: steps to profile, FIRST:LAST; process 0 writes profile/.
      watchdog: seconds without progress after which the run ends itself; 0: never.
      wandb: project of Weights & Biases that gets the metrics too.
      patience: seconds to wait for another process that uses the workdir.

    Raises:
      UserError: bad input, a workdir in use, a loss that is not finite, or a full disk. Saved checkpoints stay.
      Stopped: by SIGTERM or SIGINT.
    """
    with contextlib.closing(training(experiment, workdir, profile, watchdog, wandb, patience)) as run:
        result = None
        try:
            while True:
                turn = run.send(result)
                result = turn.dispatcher.run(turn.state, turn.call)
        except StopIteration as end:
            return end.value


def training(experiment: Experiment, workdir: Path, profile: str | None = None, watchdog: float = 0,
             wandb: str | None = None, patience: float = 0, trainer: Trainer | None = None,
             dispatcher: Dispatcher | None = None, quiet: bool = False,
             signals: Callable[[], contextlib.AbstractContextManager[list[int]]] | None = None,
             ) -> Generator[Turn, Any, dict[str, float | None]]:
    """`train`, step by step: yields a call of the devices and is sent the new state and metrics, so that several runs
    can share the devices (`training.seeds`).

    Args:
      trainer, dispatcher: if shared with other runs.
      quiet: print nothing.
      signals: collects those that ask to stop.
    """
    began = time.perf_counter()
    workdir = run_folder(workdir)
    steps, batch_size = experiment.steps, experiment.train.batch_size
    profiler = Profiler(profile, workdir / "profile")
    trainer = trainer or Trainer(experiment)
    data = trainer.data
    for name in experiment.evals:
        trainer.open_eval(name)  # a missing split is an error now, not after hours
    first_eval, picture = next(iter(experiment.evals), None), workdir / "predictions.png"
    with contextlib.ExitStack() as stack:
        owned = stack.enter_context(OwnedWorkdir(workdir, patience))  # left last, after all that writes
        resolved = open_workdir(workdir, experiment)
        noise = save_dataset_info(workdir, data)["noise"]
        checkpoints = stack.enter_context(contextlib.closing(
            Checkpoints(workdir / "checkpoints", experiment.max_checkpoints, experiment.keep)))
        notes: list[str] = []
        start, state, position = checkpoints.restore_newest(trainer.state_spec, notes.append)
        earlier = read_run(workdir) if start else {}
        if not start and experiment.branch is not None:
            start, state, position = trunk_state(experiment, experiment.branch, data, trainer.state_spec)
            earlier = {"cpu": read_run(as_path(experiment.branch.trunk)).get("cpu")}
        state = state if start else trainer.init()
        step = saved = last_logged = start
        main, best = MainScore.of(experiment, data) if experiment.keep_best else None, None
        if main and start:
            kept = checkpoints.steps()
            best = main.best(line for line in read_metrics(workdir / "metrics.jsonl") if line["step"] in kept)
            checkpoints.best = best and best[0]
        board = WandB(wandb, resolved, workdir, start) if wandb is not None and is_primary() else None
        writer = stack.enter_context(contextlib.closing(
            MetricWriter(workdir, start, quiet=not is_primary(), board=board, confirm=owned.confirm)))
        quiet = quiet or not is_primary()
        forecast = Forecast(start, steps, experiment.eval_interval, experiment.save_interval)
        display = stack.enter_context(Display(steps, start, quiet, forecast))
        received = stack.enter_context((signals or stop_signals)())
        if not quiet:
            stack.enter_context(hear_signals(display.acknowledge))
        wait = functools.partial(owned.wait, display.say, received if jax.process_count() == 1 else ())
        dog = stack.enter_context(Watchdog(watchdog, lambda: _last_saved(saved)))
        trainer.heartbeat = dog.heartbeat
        stack.enter_context(profiler)

        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        display.say(f"{workdir}: {len(data):,} images of {len(data.classes)} classes, {parameters / 1e6:.2f} M "
                    f"parameters, {jax.device_count()} {jax.devices()[0].platform} device(s)"
                    + (f", going on from step {start}" if start else ""))
        sizes = experiment.head.sizes(data)
        for line in filter(None, (*data.notes, sizes, owned.taken_over, *notes, trainer.init_summary)):
            display.say(line)
        for rule in noise:
            display.say(f"label noise: of {rule['labels']:,} labels {rule['precision']:.2%} are right; "
                        f"{rule['recall']:.2%} of the true ones are given")
        run = describe_run(seed=experiment.seed, data=data.fingerprint, images=len(data), noise=noise,
                           main_metric=experiment.head.main_metric(data).to_json())
        if start and "cpu" in run and (changed := cpu.differences(earlier.get("cpu"), run["cpu"])):
            display.say(f"{changed}: the result will differ by rounding from that of an uninterrupted run")
        earlier_seconds, save_seconds = earlier.get("wall_seconds", 0.0), earlier.get("checkpoint_seconds", 0.0)
        rate = experiment.optimizer.schedule.build(steps)
        results: dict[str, float | None] = {}
        clock, pending, dispatched, warned = Clock(), collections.deque(), 0, set[str]()
        bad_images = position.get("bad_images", 0)
        dispatcher = dispatcher or Dispatcher(trainer)
        calls = dispatcher.calls(trainer, start)

        while step < steps:
            with clock.waiting():
                call = next(calls)
            profiler.before(step + 1, step + call.steps)
            state, metrics = yield Turn(step, state, call, dispatcher)
            step, dispatched = step + call.steps, dispatched + 1
            profiler.after(step, metrics)
            dog.heartbeat(step)
            bad_images += call.bad_images
            pending.append((step, metrics))
            while len(pending) > IN_FLIGHT:
                _check(*pending.popleft(), saved)
            if dispatched == 1:
                jax.block_until_ready(metrics)
                run["seconds_to_first_step"] = round(time.perf_counter() - began, 2)
                first = "first step" if call.steps == 1 else f"first {call.steps} steps"
                display.say(f"{first} after {run['seconds_to_first_step']:.1f} s, including {clock.lap()[0]:.1f} s to "
                            "compile and run")
                last_logged = step
            display.step(step)

            last = step == steps
            log = last or step % experiment.log_every == 0
            evaluate = last or (experiment.eval_interval and step % experiment.eval_interval == 0)
            # Read once: a signal may come at any line below.
            stop = None if last else _stop_signal(received, dispatched)
            save = last or step % experiment.save_interval == 0 or step in experiment.keep or stop is not None
            if log or save or (evaluate and main):
                while pending:
                    _check(*pending.popleft(), saved)
            if log:
                seconds, waited = clock.lap()
                speed = (step - last_logged) * batch_size / seconds
                last_logged = step
                line = {**{key: float(np.ravel(value)[-1]) for key, value in metrics.items()},
                        "learning_rate": experiment.optimizer.learning_rate * float(rate(step - 1)),
                        "images_seen": step * batch_size, "images_per_second": speed, "data_wait": waited,
                        **device_memory()}
                if bad_images:
                    line["bad_images"] = bad_images
                owned.check()
                writer.write(step, line)
                if (warning := experiment.head.warning(line)) and warning not in warned:
                    warned.add(warning)
                    display.say(f"step {step}: {warning}")
                display.report(step, line, batch_size / speed if speed else 0.0)
            with clock.pause():
                if evaluate:
                    details: dict[str, Details] = {}
                    with forecast.timing("evaluation", step):
                        results = _evaluate(trainer, state, step, saved, display, details if last else None)
                    owned.check()
                    writer.write(step, results)
                    if main and main.better(value := results[main.key], best and best[1]):
                        best, save = (step, value), True
                        checkpoints.best = step
                    if first_eval:
                        _draw(trainer, state, first_eval, picture, wait)
                        writer.picture(step, f"{first_eval}/predictions", picture)
                if last and is_primary():
                    wait()
                    write_details(workdir, step, details)
                if save:
                    wait()
                    writer.sync()
                    save_began = time.perf_counter()
                    with forecast.timing("save", step):
                        checkpoints.finish_or_drop(display.say)
                        checkpoints.save(step, state, resolved, {"step": step, "bad_images": bad_images})
                    save_seconds += time.perf_counter() - save_began
                    writer.chart(step, {"checkpoint_seconds": save_seconds})
                    saved = step
                    run |= {"step": step, "images_seen": step * batch_size, "epochs": step * batch_size / len(data),
                            "bad_images": bad_images, "checkpoint_seconds": round(save_seconds, 3),
                            "wall_seconds": round(earlier_seconds + time.perf_counter() - began, 1)}
                    _write_run(workdir, run)
            if stop is not None:
                checkpoints.wait()
                raise Stopped(stop, f"after step {step}, which is saved; the same command goes on from there")

        checkpoints.wait()
        if start == steps:
            display.say(f"all {steps} steps were done before; nothing is left to train")
            run, results = run | read_run(workdir), last_results(workdir)
            if first_eval:
                _draw(trainer, state, first_eval, picture, wait)
        wait()
        run |= {"results": results, "wall_seconds": round(earlier_seconds + time.perf_counter() - began, 1)}
        _write_run(workdir, run)
        display.say(f"done in {run['wall_seconds']:.0f} s; everything is in {workdir}")
        if first_eval:
            display.say(f"predictions are drawn in {picture}")
        display.say(f"next: bvl report {shlex.quote(str(workdir))} makes a page of curves, scores and predictions")
    return results


def _draw(trainer: Trainer, state: TrainState, name: str, picture: Path, wait: Callable[[], None]) -> None:
    """Draw an evaluation elsewhere, since the workdir may go away meanwhile, then put the picture in its place."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / picture.name
        trainer.draw(state, name, drawn)
        wait()
        if is_primary():
            write_bytes(picture, drawn.read_bytes())


def _evaluate(trainer: Trainer, state: TrainState, step: int, saved: int, display: Display,
              details: dict[str, Details] | None) -> dict[str, float | None]:
    """Metrics of all evaluations and probes. ``details``: gets those of the evaluations."""
    results = {}
    main = trainer.experiment.head.main_metric(trainer.data).name
    for name in trainer.experiment.evals:
        start = time.perf_counter()
        try:
            with display.evaluation(name, len(trainer.open_eval(name)[1])) as advance:
                metrics = trainer.score(state, name, details=details, advance=advance)
        except UserError as error:
            raise UserError(f"evaluation {name} at step {step}: {error}; {_last_saved(saved)}") from error
        score = "does not exist" if metrics[main] is None else f"{metrics[main]:.4f}"
        display.say(f"step {step}: {name} {main} {score}, loss {metrics['loss']:.4f} on "
                    f"{metrics['images']:,} images in {time.perf_counter() - start:.1f} s")
        results |= {f"{name}/{key}": value for key, value in metrics.items()}
    for name, probe in trainer.experiment.probes.items():
        start = time.perf_counter()
        accuracies = probe.run(trainer, state.eval_params, state.batch_stats)
        summary = ", ".join(f"{key} {value:.4f}" for key, value in accuracies.items() if "/" not in key)
        display.say(f"step {step}: {name} {summary} in {time.perf_counter() - start:.1f} s")
        results |= {f"{name}/{key}": value for key, value in accuracies.items()}
    return results


def _check(last: int, metrics: dict[str, jax.Array], saved: int) -> None:
    """Raises: UserError when the loss or gradient of a step, the ``last`` of those that the metrics are of or one
    before it, is not finite."""
    values = np.stack([np.ravel(metrics[name]) for name in ("loss", "grad_norm")], 1)
    for step, of_step in enumerate(values, last - len(values) + 1):
        for name, value in zip(("loss", "grad_norm"), of_step.tolist(), strict=True):
            if not math.isfinite(value):
                before = f"steps {saved + 1} to {step - 1} were finite, " if step > saved + 1 else ""
                raise UserError(f"{name} is {value} at step {step}; {before}{_last_saved(saved)}; lower "
                                "--optimizer.learning-rate, warm up for longer or set --optimizer.grad-clip-norm")


def _last_saved(saved: int) -> str:
    return f"the checkpoint of step {saved} is kept" if saved else "no checkpoint was saved yet"


def _write_run(workdir: Path, run: dict) -> None:
    if is_primary():
        write_text(workdir / "run.json", json.dumps(run, indent=2) + "\n")


def _stop_signal(received: list[int], dispatched: int) -> int | None:
    """The signal that stops this run after so many calls; any of several processes may have received it."""
    if jax.process_count() == 1:
        return received[0] if received else None
    return signal.SIGTERM if all_agree_to_stop(dispatched) else None


def stop_signals() -> contextlib.AbstractContextManager[list[int]]:
    """Collects SIGTERM and SIGINT; a second one acts at once. With several processes, JAX itself watches for SIGTERM
    and tells the others; a SIGINT becomes one."""
    if jax.process_count() == 1:
        return collect_signals(signal.SIGTERM, signal.SIGINT, once=True)
    return collect_signals(signal.SIGINT, once=True, forward_as=signal.SIGTERM)
