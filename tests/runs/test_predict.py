"""`bvl predict`: runs of all tasks, image files of all kinds, pictures and JSON lines, and what is refused."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from made_files import jpeg
from PIL import Image

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.commands.runs import predict
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.runs.evaluate import evaluate, open_run
from big_vision_lite.runs.predict import ImageFiles, find_images
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.loop import train
from big_vision_lite.training.metrics import read_metrics
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.workdir import open_workdir, save_dataset_info

pytestmark = pytest.mark.usefixtures("compile_once")


def experiment(head, transform, view):
    source = EmojiScenes("train", 8, size=32, classes=4, objects=(1, 2))
    return Experiment(train=Input(source, transform, 8), evals={"validation": Input(source, view, 8)},
                      backbone=ResNet(10, width=1 / 16), head=head, optimizer=SGD(0.1), steps=2, log_every=1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of an untrained run."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    trainer = Trainer(experiment(Classification(), Resize(32), Resize(32)))
    resolved = open_workdir(folder, trainer.experiment)
    save_dataset_info(folder, trainer.data)
    with contextlib.closing(Checkpoints(folder / "checkpoints", max_checkpoints=1)) as checkpoints:
        checkpoints.save(2, trainer.init(), resolved, {})
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("segmenter") / "run"
    view = ResizeToFit(min_size=32, max_size=48, buckets=((32, 48), (48, 32)), random=False)
    segmentation = experiment(Segmentation(ASPPL((1, 2)), size=48), ScaleJitter(32), view)
    train(dataclasses.replace(segmentation, eval_every=1), folder)
    return folder


@pytest.fixture
def images(tmp_path):
    """A wide JPEG, a tall PNG with alpha, and a file of the same name in another folder."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    (folder / "wide.jpg").write_bytes(jpeg(60, 40))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 30, 4), np.uint8)).save(folder / "tall.png")
    (folder / "more" / "wide.jpg").write_bytes(jpeg(20, 20))
    return [folder / "wide.jpg", folder / "tall.png", folder / "more" / "wide.jpg"]


def predictions(capsys, *arguments):
    capsys.readouterr()
    assert predict([str(argument) for argument in arguments]) == 0
    return {prediction["image"]: prediction for prediction in map(json.loads, capsys.readouterr().out.splitlines())}


def test_labels_of_images(classifier, images, capsys, tmp_path):
    predicted = predictions(capsys, classifier, *images, "--out", tmp_path / "out")
    assert list(predicted) == [str(path) for path in images]
    for prediction in predicted.values():
        probabilities = [label["probability"] for label in prediction["labels"]]
        assert len(probabilities) == 4 and probabilities == sorted(probabilities, reverse=True)
        assert all(0 <= p <= 1 for p in probabilities)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "tall-predicted.jpg", "wide-2-predicted.jpg", "wide-predicted.jpg"]
    with Image.open(tmp_path / "out" / "wide-predicted.jpg") as picture:
        assert picture.width == 8 * 60 and picture.height > 8 * 40  # enlarged by a whole factor, above the caption
    again = predictions(capsys, classifier, images[1], "--out", tmp_path / "out")
    assert again[str(images[1])] == predicted[str(images[1])]
    for score, labels in ((probabilities[0], 4), (1.0, 0)):  # of an untrained network, all are equal
        few = predictions(capsys, classifier, images[1], "--out", tmp_path / "out", "--score", score)
        assert len(few[str(images[1])]["labels"]) == labels


def test_masks_of_images(segmenter, images, capsys):
    predicted = predictions(capsys, segmenter, *images, "--checkpoint", 2)
    assert {key: prediction["size"] for key, prediction in predicted.items()} == dict(
        zip(map(str, images), ([40, 60], [50, 30], [20, 20]), strict=True))  # as they are stored
    for prediction in predicted.values():
        assert sum(prediction["classes"].values()) == pytest.approx(1, abs=1e-4)
        with Image.open(prediction["mask"]) as mask, Image.open(prediction["picture"]) as picture:
            assert mask.mode == "P" and [mask.height, mask.width] == prediction["size"]
            shares = np.bincount(np.asarray(mask).ravel(), minlength=5) / (mask.height * mask.width)
            assert picture.width == 480 // max(mask.size) * mask.width
        stored = [prediction["classes"].get(name, 0.0) for name in ("background", *open_run(segmenter)[0].data.classes)]
        np.testing.assert_allclose(shares, stored, atol=1e-6)
    assert (segmenter / "predictions").is_dir()


def test_segmentation_runs_from_a_config_to_its_metrics(segmenter):
    last = read_metrics(segmenter / "metrics.jsonl")[-1]
    metrics = evaluate(segmenter)
    assert metrics["validation/images"] == 8 and 0 <= metrics["validation/mIoU"] < 1
    assert last["validation/mIoU"] == pytest.approx(metrics["validation/mIoU"])
    assert (segmenter / "evaluations" / "validation-2.png").stat().st_size > 10_000


def test_each_evaluation_leaves_a_picture_in_tensorboard(segmenter):
    events = b"".join(path.read_bytes() for path in (segmenter / "tensorboard").iterdir())
    assert events.count(b"validation/predictions") == events.count(b"\x89PNG") == 2  # of each of the two steps
    with Image.open(segmenter / "predictions.png") as picture:
        assert min(picture.size) > 300


def test_a_window_is_not_scored_as_a_whole_image(segmenter):
    trainer, state, _ = open_run(segmenter)
    part = ScaleJitter(24, scale=(1, 1), random=False)
    view = dataclasses.replace(trainer.experiment.evals["validation"], transform=part)
    other = Trainer(dataclasses.replace(trainer.experiment, evals={"window": view}))
    with pytest.raises(UserError, match="window of 24 x 24 pixels in an image of 32 x 32"):
        other.score(state, "window")


def test_what_cannot_be_predicted(classifier, images, tmp_path):
    with pytest.raises(UserError, match=r"no image file .*nowhere\.jpg"):
        predict([str(classifier), str(images[0]), str(tmp_path / "nowhere.jpg"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image in the folder .*empty"):
        predict([str(classifier), str(tmp_path / "empty")])
    with pytest.raises(UserError, match="--score 30: expected a score from 0 to 1"):
        predict([str(classifier), str(images[0]), "--score", "30"])
    for out in (images[0], images[0] / "below"):
        with pytest.raises(UserError, match=r"cannot write to '.*wide.jpg.*': .*; choose another --out"):
            predict([str(classifier), str(images[0]), "--out", str(out)])
    with pytest.raises(UserError, match=r"config\.json"):
        predict([str(tmp_path), str(images[0])])
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        predict([str(classifier), str(images[0]), "--checkpoint", "7"])


def test_bad_images_do_not_hold_up_the_others(classifier, images, tmp_path, capsys):
    good = predictions(capsys, classifier, *images, "--out", tmp_path / "out")
    notes, cut = tmp_path / "notes.txt", tmp_path / "cut.jpg"
    notes.write_text("no image")
    cut.write_bytes(images[0].read_bytes()[:-200])
    with pytest.raises(UserError, match=r"image '.*notes\.txt' cannot be read: .*; nor can '.*cut\.jpg'$"):
        predict(list(map(str, (classifier, images[0], notes, images[1], cut, images[2], "--out", tmp_path / "out"))))
    assert list(map(json.loads, capsys.readouterr().out.splitlines())) == list(good.values())
    with pytest.raises(UserError, match=r"image '.*cut\.jpg' cannot be read: [^;]*$"):
        predict([str(classifier), str(cut), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == ""


def test_folders_and_patterns(images, tmp_path):
    folder = images[0].parent
    (folder / "notes.txt").write_text("no image")
    out = folder / "out"
    out.mkdir()
    (out / "wide-predicted.jpg").write_bytes(images[0].read_bytes())
    assert find_images([folder], out) == [folder / "more" / "wide.jpg", folder / "tall.png", folder / "wide.jpg"]
    assert find_images([folder / "*.jpg", images[0]], out) == [images[0]]
    assert find_images([folder / "**" / "w*.jpg"], out) == [folder / "more" / "wide.jpg", images[0]]


def test_a_large_photo_keeps_its_size(classifier, tmp_path, capsys):
    path = tmp_path / "large.jpg"
    Image.new("RGB", (4000, 3000), "grey").save(path)
    picture = Image.open(predictions(capsys, classifier, path, "--out", tmp_path / "out")[str(path)]["picture"])
    assert picture.width == 4000 and picture.height > 3000
    np.testing.assert_allclose(np.asarray(picture)[:2900], 128, atol=2)


def test_each_image_is_seen_in_the_bucket_of_its_own_size(segmenter, images):
    """Whatever images a command before had."""
    trainer, _, _ = open_run(segmenter)
    for path, shape in zip(images[:2], ((32, 48), (48, 32)), strict=True):
        batch, = trainer.batches(trainer.experiment.evals["validation"], ImageFiles([path], trainer.data), seed=None)
        assert batch["image"].shape[1:3] == shape
