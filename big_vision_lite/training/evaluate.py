"""Score a checkpoint again, on the evaluations of its config or on another split of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from big_vision_lite import config
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.job import Job
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.workdir import read_description


def open_run(run: Path, step: int | None = None, allowed: Sequence[str] = (),
             split: str | None = None) -> tuple[Job, TrainState, int]:
    """A finished or unfinished run, from its folder alone: the job, the state of a checkpoint, and its step.

    Args:
      step: which checkpoint; None: the newest.
      allowed: modules beside this package that the config's classes may come from.
      split: another split for every evaluation.

    Raises:
      UserError: not a run folder, no such checkpoint, or the evaluations have no such split.
    """
    experiment: Experiment = config.read(run / "config.json", allowed)
    if split is not None:
        experiment = dataclasses.replace(experiment, evals=_on_split(experiment, split))
    checkpoints = Checkpoints(run / "checkpoints")
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{str(run)!r} has no complete checkpoint yet")
    if step is not None and step not in steps:
        raise UserError(f"{str(run)!r} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    job = Job(experiment, read_description(run))
    chosen = steps[-1] if step is None else step
    state, _ = checkpoints.restore(chosen, job.description)
    checkpoints.close()
    return job, state, chosen


def evaluate(run: Path, split: str | None = None, step: int | None = None,
             allowed: Sequence[str] = ()) -> dict[str, float]:
    """Figures of a checkpoint, also written to ``evaluations/NAME-STEP.json`` with a picture beside each.

    Raises:
      UserError: as ``open_run``.
    """
    job, state, step = open_run(run, step, allowed, split)
    folder = run / "evaluations"
    results = {"step": step}
    for name in job.experiment.evals:
        scored = job.score(state, name)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}-{step}.json").write_text(json.dumps({"step": step, **scored}, indent=2) + "\n")
        job.draw(state, name, folder / f"{name}-{step}.png")
        results |= {f"{name}/{key}": value for key, value in scored.items()}
    return results


def _on_split(experiment: Experiment, split: str) -> dict:
    inputs = next(iter(experiment.evals.values()), None)
    if inputs is None:
        raise UserError("the run's config has no evaluations to take another split of")
    if "split" not in [f.name for f in dataclasses.fields(inputs.source)]:
        raise UserError(f"{type(inputs.source).__name__} has no splits; leave --split out")
    return {split: dataclasses.replace(inputs, source=dataclasses.replace(inputs.source, split=split))}
