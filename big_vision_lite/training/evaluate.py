"""Score a checkpoint again, on the evaluations of its config or on another split of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from big_vision_lite import config
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.remote import place
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.job import Job
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.workdir import read_description


def open_run(run: Path, step: int | None = None, allowed: Sequence[str] = (),
             split: str | None = None, sources: Mapping[str, Source] | None = None) -> tuple[Job, TrainState, int]:
    """A finished or unfinished run, from its folder alone: the job, the state of a checkpoint, and its step.

    Args:
      step: which checkpoint; None: the newest.
      allowed: modules beside this package that the config's classes may come from.
      split: another split for every evaluation.
      sources: evaluate on these, by name, as the first evaluation does on its own.

    Raises:
      UserError: not a run folder, no such checkpoint, or the evaluations have no such split.
    """
    run = place(run)
    experiment: Experiment = config.read(run / "config.json", allowed)
    if split is not None:
        experiment = dataclasses.replace(experiment, evals=_on_split(experiment, split))
    if sources is not None:
        view = _first_eval(experiment, "source")
        experiment = dataclasses.replace(experiment, evals={
            name: dataclasses.replace(view, source=source, curate=()) for name, source in sources.items()})
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
             allowed: Sequence[str] = (), sources: Mapping[str, Source] | None = None,
             submission: Path | None = None) -> dict[str, float]:
    """Figures of a checkpoint, also written to ``evaluations/NAME-STEP.json`` with a picture beside each.

    Args:
      split, step, allowed, sources: as `open_run`.
      submission: file for the predictions of the first evaluation alone, in the form that the task's server takes:
        COCO's results, for detection. Its images may be without annotations; then there are no figures. An image that
        cannot be read is an error here, for no file would tell of it.

    Raises:
      UserError: as ``open_run``; or there is no such file for this head and data, or it cannot be written.
    """
    job, state, step = open_run(run, step, allowed, split, sources)
    if submission is not None:
        _check_place(submission)
        name = next(iter(job.experiment.evals))
        only = {name: dataclasses.replace(job.experiment.evals[name], on_bad_image="raise")}
        job.experiment = dataclasses.replace(job.experiment, evals=only)
    folder = place(run) / "evaluations"
    results = {"step": step}
    for name in job.experiment.evals:
        scored = job.score(state, name, submission)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}-{step}.json").write_text(json.dumps({"step": step, **scored}, indent=2) + "\n")
        job.draw(state, name, folder / f"{name}-{step}.png")
        results |= {f"{name}/{key}": value for key, value in scored.items()}
    return results


def _on_split(experiment: Experiment, split: str) -> dict:
    inputs = _first_eval(experiment, "split")
    if "split" not in [f.name for f in dataclasses.fields(inputs.source)]:
        raise UserError(f"{type(inputs.source).__name__} has no splits; leave --split out")
    return {split: dataclasses.replace(inputs, source=dataclasses.replace(inputs.source, split=split))}


def _first_eval(experiment: Experiment, what: str) -> Input:
    """Raises: UserError when there is none."""
    inputs = next(iter(experiment.evals.values()), None)
    if inputs is None:
        raise UserError(f"the run's config has no evaluations to take another {what} of")
    return inputs


def _check_place(path: Path) -> None:
    """Raises: UserError when no file can be written there: now, not after hours."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--submission {str(path)!r}: " + ("this is a folder; name a file in it" if path.is_dir() else
                                                           f"there is no folder {str(path.parent)!r}; make it first"))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--submission {str(path)!r} cannot be written; choose another place")
