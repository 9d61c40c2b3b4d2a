"""COCO's test-dev: images without annotations, results with the annotations' ids; and lists of images (minival)."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from official_coco import coco_file, official_metrics

from big_vision_lite import config
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.commands.runs import evaluate
from big_vision_lite.data.curation.steps import ClassSubset, Exclude, curated
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.coco_ap import NAMES
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4
from big_vision_lite.heads.segmentation import Segmentation
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.workdir import open_workdir, save_dataset_info

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Three images, two of them with boxes, and files that describe them like COCO's test images."""
    folder = tmp_path_factory.mktemp("coco")
    source = coco_file(folder)
    data = json.loads((folder / "instances.json").read_text())
    (folder / "empty.json").write_text(json.dumps({**data, "annotations": []}))
    data.pop("annotations")
    (folder / "image_info.json").write_text(json.dumps(data))
    return source


@pytest.fixture(scope="module")
def run(coco, tmp_path_factory):
    """The folder of an untrained detector, which finds all sorts of things."""
    variant = C4(8, pre_nms_topk=(30, 30), post_nms_topk=(12, 12), rois_per_image=8, pooler_resolution=2)
    head = FasterRCNN(variant, max_boxes=4, max_detections=5, score_threshold=0.0)
    view = ResizeToFit(32, 64, buckets=((32, 64),), random=False)
    experiment = Experiment(Input(coco, view, 8), {"val": Input(coco, view, 8, on_bad_image="mask")},
                            ResNet(10, width=1 / 16, stem="half"), head, SGD(0.1), steps=2)
    folder, trainer = tmp_path_factory.mktemp("run") / "run", Trainer(experiment)
    resolved = open_workdir(folder, experiment)
    save_dataset_info(folder, trainer.data)
    with contextlib.closing(Checkpoints(folder / "checkpoints", max_checkpoints=1)) as checkpoints:
        checkpoints.save(2, trainer.init(), resolved, {})
    return folder


def evaluated(capsys, *arguments):
    capsys.readouterr()
    assert evaluate([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_submission_of_images_without_annotations(coco, run, tmp_path, capsys):
    folder, out = Path(coco.images), tmp_path / "results.json"
    source = f"{folder / 'image_info.json'}:images={folder}"
    assert evaluated(capsys, run, "--source", source, "--submission", out) == {"step": 2, "image_info/images": 3}
    rows = json.loads(out.read_text())
    assert len(rows) == 15 and {row["image_id"] for row in rows} == {4, 7, 9}
    assert {row["category_id"] for row in rows} <= {13, 70, 90}
    for row in rows:
        left, top, width, height = row["bbox"]
        assert min(left, top) >= 0 and left + width <= 200.001 and top + height <= 100.001 and 0 <= row["score"] <= 1
    assert (run / "evaluations" / "image_info-2.png").is_file()
    # The same images with their annotations: the same file, and the metrics that COCO's own tool gives it.
    again = tmp_path / "again.json"
    metrics = evaluated(capsys, run, "--submission", again)
    assert json.loads(again.read_text()) == rows and metrics["val/images"] == 3
    official = official_metrics(folder / "instances.json", out)
    for name in NAMES:
        assert metrics.get(f"val/{name}") == pytest.approx(official.get(name), abs=1e-6), name

    with pytest.raises(UserError, match=r"images of evals\.image_info have no annotations .* --submission FILE"):
        evaluate([str(run), "--source", source])
    for path, message in ((tmp_path, "this is a folder"), (tmp_path / "no" / "x.json", "there is no folder")):
        with pytest.raises(UserError, match=message):
            evaluate([str(run), "--submission", str(path)])
    with pytest.raises(UserError, match="exclude each other"):
        evaluate([str(run), "--source", source, "--split", "x"])
    (folder / "7.jpg").rename(folder / "7.kept")
    try:
        (folder / "7.jpg").write_bytes(b"cut")
        with pytest.raises(UserError, match=r"image '7\.jpg'"):  # though the evaluation masks bad images
            evaluate([str(run), "--submission", str(again)])
    finally:
        (folder / "7.kept").rename(folder / "7.jpg")


def test_nothing_is_learnt_from_images_without_annotations(coco, run):
    folder = Path(coco.images)
    experiment = config.read(run / "config.json")
    for name in ("image_info.json", "empty.json"):
        source = CocoJson(str(folder / name), str(folder))
        dataset = source.open()
        assert dataset.unlabelled and "boxes" not in dataset[0] and dataset[0]["unlabelled"]
        assert dataset[1]["image_id"] == 9 and not len(dataset[1]["labels"])
        assert curated(dataset, (ClassSubset(("sign",), "keep"),)).unlabelled
        with pytest.raises(UserError, match=r"images of train \(CocoJson\) have no annotations"):
            Trainer(dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, source=source)))


def test_results_need_a_format_and_ids(coco, tmp_path):
    scenes = EmojiScenes("train", 4, size=32, classes=3).open()
    with pytest.raises(UserError, match=r"does not know COCO's ids .* --source FILE\.json"):
        FasterRCNN().metrics(scenes).check_results()
    for head in (Classification(), Segmentation()):
        with pytest.raises(UserError, match="only detection and keypoints have a results file"):
            head.metrics(scenes).check_results()
    (tmp_path / "list.txt").write_text("9.jpg\n")
    part = curated(coco.open(), (Exclude(str(tmp_path / "list.txt")), ClassSubset(("brush", "sign"), "keep")))
    scores = FasterRCNN().metrics(part)
    scores.check_results()
    one = np.ones((1, 1), np.float32)
    scores.scores.add(np.float32([[[1, 2, 4, 6]]]), one, np.ones((1, 1), np.int32), one > 0, np.array([1]), one[0] > 0)
    scores.write_results(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"image_id": 4, "category_id": 90, "bbox": [1, 2, 3, 4], "score": 1}]


def test_a_run_without_evaluations_has_nothing_to_submit(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"evals": {}}))
    with pytest.raises(UserError, match=r"has no evaluations, .*--split, --source and --submission need one"):
        evaluate([str(folder), "--submission", str(tmp_path / "results.json")])


def test_a_list_of_images(coco, tmp_path):
    minival = tmp_path / "minival.txt"
    minival.write_text("# ids of the json\n9\n\n4  # without boxes\n")
    whole = coco.open()
    only = dataclasses.replace(coco, only=str(minival)).open()
    rest = dataclasses.replace(coco, without=str(minival)).open()
    assert only.image_ids.tolist() == [9, 4] and rest.image_ids.tolist() == [7]
    assert len({r.fingerprint for r in (whole, only, rest)}) == 3 and rest.classes == whole.classes
    for listed, index in ((0, 1), (1, 2)):
        example, expected = only[listed], whole[index]
        assert example["id"] == expected["id"] and example["boxes"].tolist() == expected["boxes"].tolist()
    minival.write_text("9\n5\n12\n")
    with pytest.raises(UserError, match=r"image 5 of .* is not in .*instances\.json \(2 of 3 are missing\)"):
        dataclasses.replace(coco, only=str(minival)).open()
    assert len(dataclasses.replace(coco, without=str(minival)).open()) == 2
    for text, field, message in (
            ("9.jpg\n", "only", r"has the line '9\.jpg'; expected an image id"), ("\n", "only", "no image"),
            ("5\n", "without", "none of the 1 images"), ("4\n7\n9\n", "without", "leave no image")):
        minival.write_text(text)
        with pytest.raises(UserError, match=message):
            dataclasses.replace(coco, **{field: str(minival)}).open()
    with pytest.raises(UserError, match=r"cannot read CocoJson\.only"):
        dataclasses.replace(coco, only=str(tmp_path / "nowhere.txt")).open()


def test_the_recipe_names_the_evaluation_after_its_images():
    path = Path(__file__).parents[2] / "configs" / "transfer" / "coco_detection.py"
    plain = config.load(f"{path}:root=/coco")
    assert list(plain.evals) == ["val2017"] and plain.train.source.without is None
    listed = config.load(f"{path}:root=/coco,minival=/lists/minival.txt")
    source = listed.evals["minival"].source
    assert (source.only, source.images) == ("/lists/minival.txt", "/coco/val2014") and len(listed.evals) == 1
    assert listed.train.source.without == "/lists/minival.txt" and listed.train.source.images == "/coco/train2017"
    with pytest.raises(UserError, match="give the folder of COCO's files as root"):
        config.load(f"{path}:minival=/lists/minival.txt")
