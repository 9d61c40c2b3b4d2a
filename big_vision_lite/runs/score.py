"""Score the images of a source by a run, for curation by `KeepByScore`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from big_vision_lite.data.curation.curated import Curated
from big_vision_lite.data.curation.scores import ScoreTable
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Dataset
from big_vision_lite.errors import UserError, writing
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.training.best import CheckpointChoice
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.trainer import Trainer

BLOCK = 2048
"""Images that are compared at a time with those of their class."""


def score(run: Path, out: Path, data: Input | None = None, checkpoint: CheckpointChoice = "last",
          allowed: Sequence[str] = ()) -> ScoreTable:
    """Write the scores of images, see `data.curation.scores.Score`. A run with another head than `Classification` knows
    "distance" and "duplicate" only. An image is seen as the run's first evaluation sees its own, and scored with the
    labels that curation has given it.

    Args:
      out: an Arrow file.
      data: whose source and curation are used; None: what the run was trained on.
      checkpoint, allowed: as `open_run`.

    Raises:
      UserError: as `open_run`; the data has no labels or other classes than the run, or the file cannot be written.
    """
    trainer, state, step = open_run(run, checkpoint, allowed)
    data = data or trainer.experiment.train
    dataset = data.open()
    if dataset.unlabelled:
        raise UserError(f"the images of {type(data.source).__name__} have no labels, which scores are about; label "
                        "them with bvl pseudolabel")
    classifier = isinstance(trainer.experiment.head, Classification)
    if classifier and dataset.classes != trainer.data.classes:
        raise UserError(f"the source has {len(dataset.classes)} classes and {str(run)!r} {len(trainer.data.classes)}, "
                        "or others; expected the same classes in the same order")
    chosen = Curated.of(dataset)
    indices = np.concatenate(list(chosen.order.chunks()))
    labels = chosen.labels_at(indices)
    features, scores = _seen(trainer, state, data, dataset, classifier)
    if classifier:
        hot = np.zeros((len(indices), len(dataset.classes)), np.bool_)
        hot[labels.rows(), labels.values] = True
        probabilities = scores.pop("probabilities")
        least = np.where(hot, probabilities, np.inf).min(1)
        scores["margin"] = (np.where(np.isinf(least), 0.0, least)
                            - np.where(hot, -np.inf, probabilities).max(1)).astype(np.float32)
    first = np.full(len(indices), -1)
    first[labels.rows()[::-1]] = labels.values[::-1]  # the last one written is the first
    scores["distance"], scores["duplicate"] = _within_classes(features, first)
    table = ScoreTable(chosen.index.keys_at(indices), scores, chosen.source.fingerprint, str(run), step)
    with writing(out, "name another --out"):
        table.write(out)
    return table


def _seen(trainer: Trainer, state: TrainState, data: Input, dataset: Dataset,
          classifier: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features float32 ``[n, channels]`` of length 1, and of a classifier "loss" ``[n]`` and "probabilities"
    ``[n, classes]``; NaN for images that cannot be read."""
    experiment = trainer.experiment
    view = experiment.view
    inputs = Input(data.source, view.transform.single_view, view.batch_size, on_bad_image="mask")
    found: dict[str, np.ndarray] = {}
    for batch in trainer.batches(inputs, dataset, seed=None, targets=None if classifier else lambda example: {}):
        on_devices = trainer.to_devices(batch)
        outputs = {"features": trainer.feature_step(state.eval_params, state.batch_stats, on_devices["image"])}
        if classifier:
            outputs |= trainer.eval_step(state.eval_params, state.batch_stats, on_devices)
        batch, outputs = trainer.to_host(batch, outputs)
        if classifier:
            outputs["probabilities"] = experiment.head.probabilities(outputs.pop("logits"))
        for name, values in outputs.items():
            into = found.setdefault(name, np.full((len(dataset), *values.shape[1:]), np.nan, np.float32))
            into[batch["index"][batch["mask"]]] = values[batch["mask"]]
    features = found.pop("features")
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), found


def _within_classes(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """"distance" and "duplicate", float32 ``[n]``. Images without a label are a class of their own."""
    distance, duplicate = (np.full(len(labels), np.nan, np.float32) for _ in range(2))
    readable = np.isfinite(features).all(1)
    for label in np.unique(labels):
        rows = np.flatnonzero((labels == label) & readable)
        of_class = features[rows]
        prototype = of_class.mean(0) if len(rows) else np.zeros(features.shape[1])
        distance[rows] = 1 - of_class @ prototype / max(float(np.linalg.norm(prototype)), 1e-12)
        for start in range(0, len(rows), BLOCK):
            block = of_class[start : start + BLOCK]
            cosines = block @ of_class[: start + len(block)].T
            earlier = np.arange(cosines.shape[1])[None] < start + np.arange(len(block))[:, None]
            duplicate[rows[start : start + BLOCK]] = np.where(earlier, cosines, -1.0).max(1)
    return distance, duplicate
