"""Open a run from its folder, and score a checkpoint on the evaluations of its config, another split or other data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.per_object import PerObject
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.details import Details
from big_vision_lite.experiment import read_experiment
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.best import CheckpointChoice, chosen_step
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.metrics import write_details
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.workdir import read_dataset_info


def open_run(run: Path, checkpoint: CheckpointChoice = "last", allowed: Sequence[str] = ()
             ) -> tuple[Trainer, TrainState, int]:
    """A finished or unfinished run from its folder alone: its trainer, the state of a checkpoint, and its step.

    Args:
      checkpoint: its step, "best" by the main metric of the first evaluation, or "last".
      allowed: modules, besides this package, that the config's classes may come from.

    Raises:
      UserError: not a run folder, of another format, or no such checkpoint.
    """
    run = as_path(run)
    experiment = read_experiment(run / "config.json", allowed)
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        data = read_dataset_info(run)
        step = checkpoints.existing(chosen_step(run, checkpoint, checkpoints, experiment, data))
        trainer = Trainer(experiment, data)
        state, _ = checkpoints.restore(step, trainer.state_spec)
    return trainer, state, step


def evaluate(run: Path, split: str | None = None, checkpoint: CheckpointChoice = "last",
             allowed: Sequence[str] = (), sources: Mapping[str, Source] | None = None, submission: Path | None = None,
             boxes: Path | None = None) -> dict[str, float | None]:
    """Metrics of a checkpoint, None for those that do not exist; also written to ``evaluations/NAME-STEP.json``, with a
    picture beside each.

    Args:
      split: another split of the first evaluation's source, instead of the config's evaluations.
      checkpoint, allowed: as `open_run`.
      sources: other data by name, each seen as the first evaluation's, instead of the config's evaluations.
      submission: file for the predictions of the first evaluation only, in the format of the task's server: for
        detection and keypoints, COCO's results. Images may be without annotations, and then there are no metrics. An
        unreadable image is an error, since the file would lack it silently.
      boxes: for keypoints: a detector's results, whose boxes are used instead of the annotated ones.

    Raises:
      UserError: as `open_run`; ``boxes`` for another task; there is no such split, the head or data has no such format,
        or the file cannot be written.
    """
    trainer, state, step = open_run(run, checkpoint, allowed)
    evals = trainer.experiment.evals
    if not evals:
        raise UserError(f"the config of {str(run)!r} has no evaluations, like that of any imported weights, and "
                        "--split, --source and --submission need one; probe it, or evaluate a run that starts from it")
    if split is not None:
        evals = _on_split(evals, split)
    view = next(iter(evals.values()))
    if sources is not None:
        evals = {name: dataclasses.replace(view, source=_seen_as(view.source, source), curate=())
                 for name, source in sources.items()}
    if boxes is not None:
        evals = {name: dataclasses.replace(inputs, source=_with_boxes(inputs.source, boxes), curate=())
                 for name, inputs in evals.items()}
    if submission is not None:
        _check_writable(submission)
        name, inputs = next(iter(evals.items()))
        evals = {name: dataclasses.replace(inputs, on_bad_image="raise")}
    trainer.experiment = dataclasses.replace(trainer.experiment, evals=evals)
    folder = as_path(run) / "evaluations"
    results, details = {"step": step}, dict[str, Details]()
    for name in trainer.experiment.evals:
        metrics = trainer.score(state, name, submission, details)
        if calibration := details.get(name, {}).get("calibration"):
            metrics = {**metrics, "ece": calibration["ece"]}
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{name}-{step}.json", json.dumps({"step": step, **metrics}, indent=2) + "\n")
        trainer.draw(state, name, folder / f"{name}-{step}.png")
        results |= {f"{name}/{key}": value for key, value in metrics.items()}
    write_details(as_path(run), step, details)
    return results


def _seen_as(usual: Source, source: Source) -> Source:
    """Another source, per object if the usual one is."""
    return dataclasses.replace(usual, source=source, boxes=None) if isinstance(usual, PerObject) else source


def _with_boxes(source: Source, boxes: Path) -> PerObject:
    if not isinstance(source, PerObject):
        raise UserError(f"--boxes {str(boxes)!r} is for keypoints, which are predicted within boxes; this run takes "
                        f"{type(source).__name__}: leave --boxes out")
    return dataclasses.replace(source, boxes=str(boxes))


def _on_split(evals: Mapping[str, Input], split: str) -> dict[str, Input]:
    inputs = next(iter(evals.values()))
    source = inputs.source.source if isinstance(inputs.source, PerObject) else inputs.source
    if "split" not in [f.name for f in dataclasses.fields(source)]:
        raise UserError(f"{type(source).__name__} has no splits; leave --split out")
    source = _seen_as(inputs.source, dataclasses.replace(source, split=split))
    return {split: dataclasses.replace(inputs, source=source)}


def _check_writable(path: Path) -> None:
    """Raises: UserError when no file can be written there: now, not after hours."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--submission {str(path)!r}: " + ("this is a folder; name a file in it" if path.is_dir() else
                                                           f"there is no folder {str(path.parent)!r}; make it first"))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--submission {str(path)!r} cannot be written; choose another place")
