"""A run of the keypoint head: evaluated and submitted with annotated and detected boxes, predicted on photos."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from made_files import people
from official_coco import official_oks

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.commands.runs import evaluate, predict
from big_vision_lite.data.keypoints import COCO_PERSON, EMOJI
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.per_object import PerObject
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.data.transforms.object_crop import ObjectCrop
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.keypoints import DiskOffsets, TopDown
from big_vision_lite.recipes.keypoints import emoji_top_down
from big_vision_lite.runs.predict import predict as predictions
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.loop import train
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.workdir import open_workdir, save_dataset_info

pytestmark = pytest.mark.usefixtures("compile_once")


def untrained(folder, experiment):
    trainer, resolved = Trainer(experiment), open_workdir(folder, experiment)
    save_dataset_info(folder, trainer.data)
    with contextlib.closing(Checkpoints(folder / "checkpoints", max_checkpoints=1)) as checkpoints:
        checkpoints.save(2, trainer.init(), resolved, {})
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return people(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    """The folder of an untrained run."""
    objects = PerObject(source, classes=("person",))
    experiment = Experiment(Input(objects, ObjectCrop((48, 32)), 8),
                            {"val": Input(objects, ObjectCrop((48, 32), random=False), 8, on_bad_image="mask")},
                            ResNet(10, width=1 / 16, stem="half"), TopDown(DiskOffsets(16.0)), SGD(0.1), steps=2)
    return untrained(tmp_path_factory.mktemp("run") / "run", experiment)


def printed(capsys, command, *arguments):
    capsys.readouterr()
    assert command([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def boxes_file(folder):
    path = folder / "boxes.json"
    path.write_text(json.dumps([{"image_id": 7, "category_id": 1, "bbox": [18, 8, 64, 84], "score": 0.9},
                                {"image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "score": 0.4},
                                {"image_id": 7, "category_id": 3, "bbox": [0, 0, 200, 100], "score": 0.8}]))
    return path


@pytest.mark.parametrize("detected", [False, True])
def test_evaluation_and_submission_agree_with_pycocotools(source, run, tmp_path, capsys, detected):
    more = ("--boxes", boxes_file(tmp_path)) if detected else ()
    metrics = json.loads(printed(capsys, evaluate, run, "--submission", tmp_path / "out.json", *more))
    assert metrics["val/images"] == 2 and (run / "evaluations" / "val-2.png").is_file()
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["image_id"] for row in rows] == ([7, 7] if detected else [7, 4])
    with open(source.annotations) as file:
        truth = json.load(file)
    official = official_oks(truth, rows, COCO_PERSON.sigmas, 1)
    assert metrics["val/AP"] == pytest.approx(official["AP"]) and metrics["val/AR"] == pytest.approx(official["AR"])


def test_images_without_annotations_need_a_detector(source, run, tmp_path, capsys):
    with open(source.annotations) as file:
        data = json.load(file)
    del data["annotations"]
    data["categories"] = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]
    (tmp_path / "image_info.json").write_text(json.dumps(data))
    spec = f"{tmp_path / 'image_info.json'}:images={source.images},keypoints=true"
    out = printed(capsys, evaluate, run, "--source", spec, "--boxes", boxes_file(tmp_path), "--submission",
                  tmp_path / "out.json")
    assert json.loads(out) == {"step": 2, "image_info/images": 2}
    rows = json.loads((tmp_path / "out.json").read_text())
    assert len(rows) == 2 and {row["category_id"] for row in rows} == {1} and len(rows[0]["keypoints"]) == 51
    with pytest.raises(UserError, match=r"no annotated objects; give a detector's: .*--boxes FILE"):
        evaluate([str(run), "--source", spec, "--submission", str(tmp_path / "none.json")])


def test_predictions_of_photos_with_and_without_boxes(source, run, tmp_path, capsys):
    photos = [f"{source.images}/{name}.png" for name in (7, 4)]
    lines = printed(capsys, predict, run, *photos, "--out", tmp_path / "whole").splitlines()
    whole = [json.loads(line) for line in lines]
    assert [answer["poses"][0]["box"] for answer in whole] == [[0, 0, 200, 100]] * 2
    assert list(whole[0]["poses"][0]["keypoints"]) == list(COCO_PERSON.names)
    found = [([20, 10, 80, 90], 0.9, "person"), ([0, 0, 9, 9], 0.2, "person"), ([120, 10, 160, 50], 0.5, "person"),
             ([0, 0, 9, 9], 0.9, "cat")]
    of_photo = [{"box": box, "score": score, "label": label} for box, score, label in found]
    detections = [{"image": photos[0], "detections": of_photo}, {"image": "elsewhere.png", "detections": []}]
    (tmp_path / "detected.jsonl").write_text("\n".join(map(json.dumps, detections)))
    lines = printed(capsys, predict, run, *photos, "--boxes", tmp_path / "detected.jsonl", "--out", tmp_path / "boxes")
    answers = [json.loads(line) for line in lines.splitlines()]
    assert [answer["image"] for answer in answers] == photos and answers[1]["poses"] == []
    poses = answers[0]["poses"]
    assert sorted(pose["box"] for pose in poses) == [[20, 10, 80, 90], [120, 10, 160, 50]]
    assert poses[0]["score"] >= poses[1]["score"]
    assert {path.name for path in (tmp_path / "boxes").iterdir()} == {"7-predicted.jpg", "4-predicted.jpg"}
    one, = (pose for pose in poses if pose["box"][0] == 20)
    # As in an evaluation with that box.
    metrics_boxes = tmp_path / "one.json"
    metrics_boxes.write_text(json.dumps([{"image_id": 7, "category_id": 1, "bbox": [20, 10, 60, 80], "score": 0.9}]))
    evaluate([str(run), "--boxes", str(metrics_boxes), "--submission", str(tmp_path / "one_pose.json")])
    row = np.reshape(json.loads((tmp_path / "one_pose.json").read_text())[0]["keypoints"], (17, 3))
    np.testing.assert_allclose(np.array(list(one["keypoints"].values())) - [0.5, 0.5, 0], row, atol=0.02)


def test_boxes_that_cannot_be_used(source, run, tmp_path):
    photo = f"{source.images}/7.png"
    (tmp_path / "other.jsonl").write_text('{"image": "other.png", "detections": []}\n')
    (tmp_path / "broken.jsonl").write_text('{"labels": []}\n')
    scenes = Input(EmojiScenes("train", 8, size=32, classes=4), Resize(32), 8)
    classifier = untrained(tmp_path / "classifier", Experiment(
        scenes, {"validation": scenes}, ResNet(10, width=1 / 16), Classification(), SGD(0.1), steps=2))
    for folder, name, message in ((run, "other", r"has no detection of person with a score of at least 0.3 in these"),
                                  (run, "broken", "cannot read .*expected the lines that bvl predict prints"),
                                  (run, "missing", "--boxes .*missing.jsonl"),
                                  (classifier, "other", "--boxes .* is for keypoints")):
        with pytest.raises(UserError, match=message) as caught:
            list(predictions(folder, [tmp_path.__class__(photo)], tmp_path / "out", boxes=tmp_path / f"{name}.jsonl"))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"--boxes .* is for keypoints.*this run takes EmojiScenes"):
        evaluate([str(classifier), "--boxes", str(tmp_path / "other.jsonl")])


@pytest.mark.slow
def test_sixteen_scenes_are_overfit(tmp_path):
    """On purpose: crops that are always the same, evaluated on themselves."""
    scenes = PerObject(EmojiScenes("train", 16, size=96, classes=20, objects=(1, 4), zipf=0.5, keypoints=True))
    view = ObjectCrop(64, random=False)
    experiment = emoji_top_down(init=None, style="twemoji", steps=300, batch_size=16)
    train_input, evals = Input(scenes, view, 16), {"train": Input(scenes, view, 16)}
    head = dataclasses.replace(experiment.head, flip_test=False)  # mirrored crops are not learned
    experiment = dataclasses.replace(experiment, train=train_input, evals=evals, head=head)
    train(experiment, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    print(results)
    assert results["train/AP"] >= 0.95 and experiment.head.keypoints == EMOJI
