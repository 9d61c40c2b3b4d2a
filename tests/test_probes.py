"""Simple classifiers on features, against scikit-learn and against themselves."""

import numpy as np
import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.probes import (
    Features,
    LogisticRegression,
    Ridge,
    few_shot,
    linear_probe,
    nearest_neighbours,
    shots_of,
)

NAMES = tuple("abcde")


def blobs(count, spread=1.5, seed=0, dimensions=12):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 5)
    centres = np.random.default_rng(99).normal(size=(5, dimensions))
    values = centres[labels] + spread * rng.normal(size=(count, dimensions))
    return Features((values * 3 + 1).astype(np.float32), labels, NAMES)


@pytest.mark.parametrize("count", [8, 200])  # fewer and more rows than columns
def test_ridge_is_scikit_learns(count):
    from sklearn.linear_model import Ridge as Theirs
    from sklearn.model_selection import LeaveOneOut

    data, test = blobs(count), blobs(50, seed=1)
    y = np.eye(5)[data.labels]
    mean, scale = data.values.mean(0), data.values.std(0)
    ours = Ridge(data.values, y)
    for ridge, scores in zip((0.5, 30.0), ours.scores(test.values, (0.5, 30.0)), strict=True):
        theirs = Theirs(ridge).fit((data.values - mean) / scale, y).predict((test.values - mean) / scale)
        np.testing.assert_allclose(scores, theirs, atol=1e-4)
    if count > 8:
        z = (data.values - mean) / scale
        expected = np.zeros_like(y)
        for rest, one in LeaveOneOut().split(z):
            expected[one] = Theirs(30.0).fit(z[rest], y[rest]).predict(z[one])
        np.testing.assert_allclose(ours.left_out(30.0), expected, atol=1e-3)


def test_few_shots_are_nested_and_help():
    train, test = blobs(400), blobs(1000, seed=1)
    order = shots_of(train.labels, NAMES, seed=3)
    assert all((train.labels[rows] == c).all() for c, rows in enumerate(order))
    assert sum(len(rows) for rows in order) == 400
    found = few_shot(train, test, (1, 5, 25), seeds=(0, 1, 2))
    assert few_shot(train, test, (5,), seeds=(1,))[5][0] != found[1][1]
    assert np.mean(found[1]) < np.mean(found[5]) < np.mean(found[25])
    assert few_shot(train, test, (1, 5, 25), seeds=(0, 1, 2)) == found
    exactly = blobs(125)  # nothing is left to choose the regulariser on
    assert min(few_shot(exactly, test, (25,))[25]) > np.mean(found[25]) - 0.1


def test_neighbours_are_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    train, test = blobs(300), blobs(2500, seed=1)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp(-d / 0.07))
    theirs.fit(train.values, train.labels)
    assert nearest_neighbours(train, test) == pytest.approx(theirs.score(test.values, test.labels), abs=1e-3)


def test_logistic_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression as Theirs

    train, test = blobs(300), blobs(500, seed=1)
    ours = LogisticRegression(train.values, train.labels, 5, 0.01)
    z = (train.values - train.values.mean(0)) / train.values.std(0)
    theirs = Theirs(C=1 / (0.01 * 300), tol=1e-8, max_iter=1000).fit(z, train.labels)
    probability = np.exp(ours(train.values))
    probability /= probability.sum(1, keepdims=True)
    np.testing.assert_allclose(probability, theirs.predict_proba(z), atol=5e-3)
    assert linear_probe(train, test) > 0.7


@pytest.mark.parametrize(("probe", "message"), [
    (lambda: few_shot(blobs(20), blobs(5), (5,)), r"class 'a' has 4 training images, fewer than 5 shots"),
    (lambda: nearest_neighbours(blobs(10), blobs(5)), r"10 training images are fewer than k=20"),
    (lambda: Features(np.full((2, 3), np.nan, np.float32), np.zeros(2, int), NAMES), r"of 2 images, such as number 0"),
    (lambda: Features(np.zeros((2, 3), np.float32), np.array([0, 5]), NAMES), r"labels from 0 to 5; there are 5"),
    (lambda: Features(np.zeros((2, 3), np.float32), np.zeros(3, int), NAMES), r"expected \[n, d\] and \[n\]"),
])
def test_what_is_refused(probe, message):
    with pytest.raises(UserError, match=message):
        probe()


def test_a_run_is_probed_as_it_trains_and_afterwards(tmp_path, capsys):
    import json
    import pickle

    from big_vision_lite.backbones.resnet import ResNet
    from big_vision_lite.cli import main
    from big_vision_lite.data.emoji_scenes import EmojiScenes
    from big_vision_lite.data.pipeline import Input
    from big_vision_lite.data.transforms import Squash
    from big_vision_lite.experiment import Experiment
    from big_vision_lite.heads.classification import Classification
    from big_vision_lite.training.embed import Embedder
    from big_vision_lite.training.evaluate import open_run
    from big_vision_lite.training.loop import train
    from big_vision_lite.training.optimizers import SGD
    from big_vision_lite.training.probe import Probe, features

    def inputs(split, images, objects=(1, 1)):
        return Input(EmojiScenes(split, images, size=32, classes=4, objects=objects, zipf=0), Squash(32), 8)

    asked = Probe(inputs("train", 60), inputs("test", 21), ("few_shot", "neighbours", "linear"), (1, 3), (0, 1))
    run = tmp_path / "run"
    results = train(Experiment(
        inputs("train", 16), {"validation": inputs("validation", 8)}, ResNet(10, width=1 / 16, stem="half"),
        Classification("softmax"), SGD(0.01), steps=1, probes={"probe": asked}), run)
    names = {"few_shot_1", "few_shot_3", "neighbours_20", "linear"}
    assert names <= {key.removeprefix("probe/") for key in results}
    spec = "emoji_scenes:split={},images={},size=32,classes=4,objects=1,1,zipf=0"
    command = ["probe", str(run), "--train", spec.format("train", 60), "--test", spec.format("test", 21)]
    command += ["--shots", "1", "3", "--seeds", "0", "1"]
    capsys.readouterr()
    assert main(command) == 0 and "few shot 3" in capsys.readouterr().out
    again = json.loads((run / "probes" / "1.json").read_text())
    assert {name: again[name] for name in names} == {name: results[f"probe/{name}"] for name in names}
    assert main([*command, "--random"]) == 0
    random = json.loads((run / "probes" / "random.json").read_text())
    assert any(random[name] != again[name] for name in names)
    job, state, _ = open_run(run)
    records = asked.test.open()
    images = np.stack([batch["image"] for batch in job.batches(asked.test, records, None)][:1])[0]
    expected = features(job, state.best_params, state.stats, asked.test, records).values[: len(images)]
    embedder = pickle.loads(pickle.dumps(Embedder(run)))
    assert embedder.size == 32
    np.testing.assert_allclose(embedder(images), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"train images have any number of labels"):
        Probe(inputs("train", 60, (1, 2)), inputs("test", 20)).run(None, {}, {})
