"""Pseudo-labels: what a teacher says, what is kept of it, how right it is, and a student of it."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from big_vision_lite.cli import main
from big_vision_lite.data.curation.steps import LabelNoise, curated
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.pseudo_labels import PseudoLabels
from big_vision_lite.data.sources.unlabelled_folder import UnlabelledFolder
from big_vision_lite.errors import UserError
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.runs.pseudolabel import pseudolabel
from big_vision_lite.training.loop import train

CLASSES = ("blue", "green", "red")


def probabilities_of(run, dataset):
    trainer, state, _ = open_run(run)
    view, rows = trainer.experiment.evals["val"], {}
    for batch, outputs in trainer.predictions(state.eval_params, state.batch_stats, view, dataset):
        e = np.exp(outputs["logits"] - outputs["logits"].max(1, keepdims=True))
        rows |= dict(zip(batch["index"].tolist(), e / e.sum(1, keepdims=True), strict=True))
    return np.stack([rows[index] for index in range(len(dataset))])


def test_labels_are_the_teachers_above_the_threshold_and_given_ones_stay(colour_run, tmp_path, capsys):
    run, root, experiment = colour_run
    source, out = ImageFolder(str(root), "train"), tmp_path / "labels.csv"
    dataset = source.open()
    expected, own = probabilities_of(run, dataset), curated(dataset, experiment.train.curate)
    given = {own.labels(i)[0] for i in range(9)}
    hidden = [i for i in range(45) if dataset.labels(i)[0] not in given]
    threshold = float(np.median(expected[hidden].max(1)))
    assert main(["pseudolabel", str(run), "--source", f"{root}:split=train", "--out", str(out), "--threshold",
                 str(threshold), "--top-k", "2"]) == 0
    how = json.loads(out.with_suffix(".json").read_text())
    confident = [i for i in hidden if expected[i].max() >= threshold]
    assert (how["images"], how["labelled"], how["given"]) == (45, len(confident), 9) and len(confident) == 18
    right = [expected[i].argmax() == dataset.labels(i)[1][0] for i in confident]
    assert how["precision"] == pytest.approx(np.mean(right)) and how["recall"] == pytest.approx(np.sum(right) / 36)
    assert f"precision {np.mean(right):.4f}" in capsys.readouterr().out

    opened = PseudoLabels(source, str(out)).open()
    index_of = {dataset.labels(i)[0]: i for i in range(45)}
    assert len(opened) == 27 and opened.classes == CLASSES and not opened.multi_label
    for example in opened.read(range(27)):
        i = index_of[example["id"]]
        if example["id"] in given:
            assert example["confidence"] == 1 and example["labels"].tolist() == dataset.labels(i)[1].tolist()
        else:
            order = np.argsort(-expected[i])[:2]
            assert example["labels"].tolist() == [order[0]] and example["candidates"].tolist() == order.tolist()
            np.testing.assert_allclose(example["probabilities"], expected[i][order], rtol=1e-5)
    fewer = PseudoLabels(source, str(out), min_confidence=0.999).open()
    assert len(fewer) < 27 and fewer.fingerprint != opened.fingerprint
    relabelled = curated(opened, (LabelNoise(0.5),))
    assert not {"candidates", "probabilities", "confidence"} & {*relabelled[0]}

    # A student learns from them, and labels the images again: those that were given stay so.
    student = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, source=PseudoLabels(source, str(out)), curate=()),
        head=Classification("softmax", soft_labels=True), steps=1)
    train(student, tmp_path / "student")
    again = pseudolabel(tmp_path / "student", source, tmp_path / "again.csv", per_class=4)
    assert again.given == 9 and 0 < again.labelled <= 12
    with open(tmp_path / "again.csv") as file:
        counts = np.bincount([CLASSES.index(row["labels"]) for row in csv.DictReader(file) if row["given"] == "0"])
    assert counts.max() <= 4


def test_an_unlabelled_folder_and_what_is_refused(colour_run, tmp_path):
    run, root, _ = colour_run
    source, out = UnlabelledFolder(str(root)), tmp_path / "labels.csv"
    how = pseudolabel(run, source, out)
    assert (how.labelled, how.given, how.precision) == (54, 0, None)
    with pytest.raises(UserError, match=r"of the 54 ids .* are not in ImageFolder"):
        PseudoLabels(ImageFolder(str(root), "val"), str(out)).open()
    with pytest.raises(UserError, match="make it by: bvl pseudolabel"):
        PseudoLabels(source, str(tmp_path / "none.csv")).open()
    with pytest.raises(UserError, match="none of the 54 images gets a label with threshold=1"):
        pseudolabel(run, source, out, threshold=1.0)
    with pytest.raises(UserError, match="expected a threshold from 0 to 1"):
        pseudolabel(run, source, out, threshold=1.5)
    out.write_text(out.read_text().replace("blue", "mauve"))
    with pytest.raises(UserError, match="'mauve' is none of the 3 classes"):
        PseudoLabels(source, str(out)).open()
    with pytest.raises(UserError, match="expected from 0 to 1"):
        PseudoLabels(source, str(out), min_confidence=-0.1)
