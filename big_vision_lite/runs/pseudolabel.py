"""Give the labels that a run predicts to images without labels, to learn from them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from big_vision_lite.data.curation.steps import curated
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Dataset, Source
from big_vision_lite.data.sources.pseudo_labels import (
    HowMade,
    PseudoLabel,
    PseudoLabels,
    ids_of,
    read_pseudo_labels,
    write_pseudo_labels,
)
from big_vision_lite.errors import UserError, writing
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.training.best import CheckpointChoice
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.trainer import Trainer


def pseudolabel(run: Path, source: Source, out: Path, threshold: float = 0.0, per_class: int | None = None,
                candidates: int = 5, checkpoint: CheckpointChoice = "last", allowed: Sequence[str] = ()) -> HowMade:
    """Label the images of a source by a run, and write what `PseudoLabels` reads.

    Images that the run was trained on keep the labels that it was trained with, if it was trained on the same source.
    An image is seen as the run's first evaluation sees its own. One that cannot be read gets no label. Where the source
    has labels of its own, the pseudo-labels are compared with them; the network never sees them.

    Args:
      out: csv file.
      threshold: least probability of a label. Of one label per image, the most probable; of any number, all that reach
        it.
      per_class: at most so many images per class, the most confident, so that classes are balanced (Xie et al. 2020,
        section 3.1); for one label per image.
      candidates: classes per image whose probabilities are kept, for soft labels.
      checkpoint, allowed: as `open_run`.

    Raises:
      UserError: as `open_run`, another head than `Classification`, a value out of range, no image gets a label, or the
        file cannot be written.
    """
    if not 0 <= threshold <= 1 or candidates < 1 or (per_class is not None and per_class < 1):
        raise UserError(f"pseudolabel: threshold={threshold:g}, per_class={per_class}, candidates={candidates}; "
                        "expected a threshold from 0 to 1, and the others at least 1")
    trainer, state, step = open_run(run, checkpoint, allowed)
    head, info = trainer.experiment.head, trainer.data
    if not isinstance(head, Classification):
        raise UserError(f"{str(run)!r} has the head {type(head).__name__}, which gives images no labels; expected a "
                        "run with Classification")
    if info.multi_label and per_class is not None:
        raise UserError(f"per_class={per_class} is for one label per image, and this run gives any number; leave it "
                        "out")
    dataset = source.open()
    given = _given_labels(trainer, dataset)
    probabilities = _probabilities(trainer, state, source, dataset)
    rows, unreadable = [], int(np.isnan(probabilities[:, 0]).sum())
    for id_, row in zip(ids_of(dataset), probabilities, strict=True):
        if id_ in given:
            if own := given[id_]:
                rows.append(PseudoLabel(id_, own, 1.0, own, (1.0,) * len(own), True))
        elif labelled := chosen(id_, row, threshold, candidates, info.multi_label):
            rows.append(labelled)
    if per_class is not None:
        rows = _balanced(rows, per_class)
    made = [row for row in rows if not row.given]
    if not made:
        raise UserError(f"none of the {len(dataset):,} images gets a label with threshold={threshold:g}; lower it")
    precision, recall = _accuracy(made, given, dataset, info.classes)
    how = HowMade(classes=info.classes, multi_label=info.multi_label, run=str(run), step=step,
                  fingerprint=dataset.fingerprint, threshold=threshold, per_class=per_class, images=len(dataset),
                  labelled=len(made), given=len(rows) - len(made), unreadable=unreadable, precision=precision,
                  recall=recall)
    with writing(out, "name another --out"):
        write_pseudo_labels(out, rows, how)
    return how


def chosen(id_: str, row: np.ndarray, threshold: float, candidates: int, multi_label: bool) -> PseudoLabel | None:
    """The pseudo-label of an image by the probabilities of its classes, ``[c]``; None where none reaches the threshold,
    or the image cannot be read.

    >>> chosen("a.jpg", np.array([0.25, 0.5, 0.125]), 0.25, candidates=1, multi_label=True)
    PseudoLabel(id='a.jpg', labels=(0, 1), confidence=0.5, candidates=(1,), probabilities=(0.5,), given=False)
    """
    if not row.max() >= threshold:  # nor is NaN
        return None
    best = np.argsort(-row, kind="stable")[:candidates].tolist()
    labels = np.flatnonzero(row >= threshold).tolist() if multi_label else best[:1]
    return PseudoLabel(id_, tuple(labels), float(row[best[0]]), tuple(best), tuple(row[best].tolist()), False)


def _probabilities(trainer: Trainer, state: TrainState, source: Source, dataset: Dataset) -> np.ndarray:
    """float32 ``[n, classes]``; NaN for images that cannot be read."""
    experiment = trainer.experiment
    view = experiment.view
    inputs = Input(source, view.transform, view.batch_size, on_bad_image="mask")
    unlabelled = {"labels": np.full(1, -1, np.int32)}
    probabilities = np.full((len(dataset), len(trainer.data.classes)), np.nan, np.float32)
    for batch in trainer.batches(inputs, dataset, seed=None, targets=lambda example: unlabelled):
        outputs = trainer.eval_step(state.eval_params, state.batch_stats, trainer.to_devices(batch))
        batch, outputs = trainer.to_host(batch, outputs)
        mask = batch["mask"]
        probabilities[batch["index"][mask]] = experiment.head.probabilities(outputs["logits"][mask])
    return probabilities


def _given_labels(trainer: Trainer, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """The labels that images of this dataset had when the run was trained on them, by id."""
    train = trainer.experiment.train
    source = train.source
    if isinstance(source, PseudoLabels):
        if source.source.open().fingerprint != dataset.fingerprint:
            return {}
        _, rows = read_pseudo_labels(Path(source.file).expanduser())
        return {row.id: row.labels for row in rows if row.given}
    try:
        opened = source.open()
    except UserError as error:  # the data of the run may be elsewhere by now
        print(f"bvl: the run's own data cannot be opened, so none of its labels are kept: {error}", file=sys.stderr)
        return {}
    if opened.fingerprint != dataset.fingerprint or opened.unlabelled:
        return {}
    data = curated(opened, train.curate)
    return {id_: tuple(labels.tolist()) for id_, labels in (data.labels(index) for index in range(len(data)))}


def _balanced(rows: Sequence[PseudoLabel], per_class: int) -> list[PseudoLabel]:
    """The rows without the least confident pseudo-labels of classes that have more than ``per_class``."""
    kept, count = set(), dict[int, int]()
    for row in sorted(rows, key=lambda row: -row.confidence):
        count[row.labels[0]] = count.get(row.labels[0], 0) + (not row.given)
        if row.given or count[row.labels[0]] <= per_class:
            kept.add(row.id)
    return [row for row in rows if row.id in kept]


def _accuracy(made: Sequence[PseudoLabel], given: dict[str, tuple[int, ...]], dataset: Dataset,
              classes: tuple[str, ...]) -> tuple[float | None, float | None]:
    """Precision and recall of the labels against the dataset's own; None where it has none, or other classes."""
    if dataset.unlabelled or dataset.classes != classes:
        return None, None
    truth = {id_: set(labels.tolist()) for id_, labels in (dataset.labels(index) for index in range(len(dataset)))
             if id_ not in given}
    hits = sum(len(truth[row.id] & set(row.labels)) for row in made)
    return hits / sum(len(row.labels) for row in made), hits / max(sum(map(len, truth.values())), 1)
