"""Scores of images by a run, against their definitions."""

import numpy as np
import pytest

from big_vision_lite.cli import main
from big_vision_lite.data.curation.scores import KeepByScore, ScoreTable
from big_vision_lite.data.curation.steps import curated
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.ragged import id_key
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.unlabelled_folder import UnlabelledFolder
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import UserError
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.runs.features import features_of
from big_vision_lite.runs.score import score


def test_scores_follow_their_definitions(colour_run, tmp_path):
    run, root, _ = colour_run
    file = tmp_path / "scores.arrow"
    assert main(["data", "score", str(run), "--source", f"{root}:split=train", "--out", str(file)]) == 0
    table, dataset = ScoreTable.read(str(file)), ImageFolder(str(root), "train").open()
    trainer, state, _ = open_run(run)
    ids, labels = zip(*(dataset.labels(i) for i in range(45)), strict=True)
    labels = np.concatenate(labels)
    assert table.keys.tolist() == [id_key(id_) for id_ in ids] and table.fingerprint == dataset.fingerprint

    features = features_of(trainer, state, [root / id_ for id_ in ids])
    head = state.eval_params["head"]
    logits = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    of_label = p[np.arange(45), labels]
    p[np.arange(45), labels] = 0
    np.testing.assert_allclose(table.scores["loss"], -np.log(of_label), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(table.scores["margin"], of_label - p.max(1), atol=1e-4)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for i in range(45):
        prototype = unit[labels == labels[i]].mean(0)
        assert table.scores["distance"][i] == pytest.approx(1 - unit[i] @ prototype / np.linalg.norm(prototype),
                                                            abs=1e-5)
        earlier = [unit[i] @ unit[k] for k in range(i) if labels[k] == labels[i]]
        assert table.scores["duplicate"][i] == pytest.approx(max(earlier, default=-1.0), abs=1e-5)
    hardest = curated(dataset, (KeepByScore(str(file), 0.2),))
    assert {hardest.labels(i)[0] for i in range(9)} == {ids[i] for i in np.argsort(-table.scores["loss"])[:9]}


def test_what_a_run_was_trained_on_is_scored_and_data_without_labels_is_not(colour_run, tmp_path):
    run, root, experiment = colour_run
    table = score(run, tmp_path / "scores.arrow")
    trained = curated(experiment.train.source.open(), experiment.train.curate)
    assert table.keys.tolist() == [id_key(trained.labels(i)[0]) for i in range(9)]
    with pytest.raises(UserError, match="have no labels, which scores are about"):
        score(run, tmp_path / "scores.arrow", Input(UnlabelledFolder(str(root)), Resize(12), 8))
