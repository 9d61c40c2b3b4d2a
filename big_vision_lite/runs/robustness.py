"""Score a run on robustness sets: other images of the classes that it knows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from big_vision_lite.data.sources.robustness import KINDS
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.evaluation.answer_sets import AnswerSetMetrics
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.best import CheckpointChoice
from big_vision_lite.training.metrics import write_details


def evaluate_robustness(run: Path, sets: Mapping[str, str], checkpoint: CheckpointChoice = "last",
                        allowed: Sequence[str] = ()) -> dict[str, float | None]:
    """Top-1, top-5 and calibration error on each set, as "KIND/METRIC"; also written to ``evaluations/KIND-STEP.json``.

    Images are seen as the run's first evaluation sees its own; without one, as in training.

    Args:
      sets: folder by kind, one of `KINDS`.
      checkpoint, allowed: as `open_run`.

    Raises:
      UserError: an unknown kind, a run that does not classify, a folder of another layout, or as `open_run`.
    """
    for kind in sets:
        if kind not in KINDS:
            raise UserError(f"there is no robustness set {kind!r}; expected one of {', '.join(KINDS)}"
                            + nearest(kind, KINDS))
    trainer, state, step = open_run(run, checkpoint, allowed)
    head, classes = trainer.experiment.head, trainer.data.classes
    if not isinstance(head, Classification):
        raise UserError(f"robustness sets are for classification; {str(run)!r} has a {type(head).__name__}")
    datasets = {kind: KINDS[kind](folder, classes) for kind, folder in sets.items()}  # all, before any takes its time
    inputs = dataclasses.replace(trainer.experiment.view, curate=(), resident=None)
    folder = as_path(run) / "evaluations"
    results: dict[str, float | None] = {"step": step}
    for kind, dataset in datasets.items():
        metrics = AnswerSetMetrics(dataset.candidates, head.confidence, dataset.groups)
        for batch, outputs in trainer.predictions(state.eval_params, state.batch_stats, inputs, dataset):
            index = batch["index"][batch["mask"]]
            answers = dataset.answers.take(index)
            right = np.zeros((len(index), len(classes)), np.bool_)
            right[answers.rows(), answers.values] = True
            metrics.add(outputs["logits"][batch["mask"]], right, dataset.group_of[index])
        found = metrics.result()
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{kind}-{step}.json", json.dumps({"step": step, **found}, indent=2) + "\n")
        write_details(as_path(run), step, {kind: metrics.details()})
        results |= {f"{kind}/{key}": value for key, value in found.items()}
    return results
