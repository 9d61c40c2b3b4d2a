"""Seeds of one experiment, trained side by side in one program."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax

from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.system.signals import Stopped
from big_vision_lite.training.calls import Dispatcher
from big_vision_lite.training.loop import stop_signals, training
from big_vision_lite.training.trainer import Trainer


def train_seeds(experiment: Experiment, workdir: Path, seeds: Sequence[int], profile: str | None = None,
                watchdog: float = 0, wandb: str | None = None) -> dict[int, dict[str, float | None]]:
    """Train an experiment once for each seed, all in one program (``vmap``), and return the last metrics of each.

    Each run is as `loop.train` makes it, in ``workdir/seedN``, and equal to its own run up to rounding. It can be
    resumed on its own, or together with the others: those that have done fewer steps then catch up first. A run that
    fails does not end the others. Only the first prints what it does. "images_per_second" is of one run, while all of
    them train, and another one's evaluations count as training.

    Args:
      experiment: its seed is not used.
      profile, watchdog: as `loop.train`.
      wandb: must be None.

    Raises:
      UserError: images are not on the devices, there are several processes, a seed occurs twice, or a run failed.
      Stopped: by SIGTERM or SIGINT.
    """
    _check(experiment, seeds, wandb)
    first = Trainer(dataclasses.replace(experiment, seed=seeds[0]))
    trainers = [first, *map(first.with_seed, seeds[1:])]
    dispatcher = Dispatcher(first)
    dispatcher.kept  # noqa: B018  decoded before a run begins
    results, failures = dict[int, dict[str, float | None]](), dict[int, UserError | Stopped]()
    with contextlib.ExitStack() as stack:
        received = functools.cache(lambda: stack.enter_context(stop_signals()))  # from when the first run begins
        runs = {}
        for trainer in trainers:
            leads = trainer is first
            runs[trainer.experiment.seed] = stack.enter_context(contextlib.closing(training(
                trainer.experiment, workdir / f"seed{trainer.experiment.seed}", profile if leads else None,
                watchdog if leads else 0, trainer=trainer, dispatcher=dispatcher, quiet=not leads,
                signals=lambda: contextlib.nullcontext(received()))))
        turns = {}

        def resume(seed: int, result: object) -> None:
            """Let a run go on to its next turn, or to its end."""
            turns.pop(seed, None)
            try:
                turns[seed] = runs[seed].send(result)
            except StopIteration as end:
                results[seed] = end.value
            except (UserError, Stopped) as error:
                failures[seed] = error

        for seed in seeds:
            resume(seed, None)
        for trainer in trainers[1:]:
            trainer.heartbeat = first.heartbeat
        while turns:
            step = min(turn.step for turn in turns.values())
            now = {seed: turn for seed, turn in turns.items() if turn.step == step}
            states, calls = ([getattr(turn, name) for turn in now.values()] for name in ("state", "call"))
            for seed, result in zip(now, dispatcher.run_together(states, calls), strict=True):
                resume(seed, result)
    for error in failures.values():
        if isinstance(error, Stopped):
            raise error
    if failures:
        raise UserError("; ".join(f"seed {seed}: {error}" for seed, error in failures.items()))
    return results


def _check(experiment: Experiment, seeds: Sequence[int], wandb: str | None) -> None:
    if experiment.train.resident != "device":
        raise UserError(f"seeds side by side with train.resident={experiment.train.resident!r}; set "
                        "--train.resident=device")
    if len(set(seeds)) < len(seeds) or min(seeds, default=-1) < 0:
        raise UserError(f"seeds {', '.join(map(str, seeds))}; expected different numbers of at least 0")
    if jax.process_count() > 1 or experiment.mesh.fsdp > 1:
        raise UserError(f"seeds side by side with {jax.process_count()} processes and mesh.fsdp="
                        f"{experiment.mesh.fsdp}; expected 1 and 1")
    if wandb is not None:
        raise UserError("seeds side by side cannot write to Weights & Biases; leave --wandb out")
