"""Evaluations that cannot be scored: found before step 0 where the data shows it, and no reason to lose a run."""

import json

import pytest
from official_coco import coco_file
from toy_backbone import Toy

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4
from big_vision_lite.runs.doctor import doctor
from big_vision_lite.training.loop import train
from big_vision_lite.training.optimizers import SGD

pytestmark = pytest.mark.usefixtures("compile_once")


def changed(source, folder, name, change):
    data = json.loads((folder / "instances.json").read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
    return CocoJson(str(folder / name), source.images)


def test_an_evaluation_with_nothing_to_score_is_refused_before_step_0(tmp_path):
    source = coco_file(tmp_path)
    crowds = changed(source, tmp_path, "crowds.json", lambda d: [a.update(iscrowd=1) for a in d["annotations"]])
    view = ResizeToFit(32, 64, buckets=((32, 64),), random=False)
    head = FasterRCNN(C4(8, pre_nms_topk=(9, 9), post_nms_topk=(9, 9), rois_per_image=8, pooler_resolution=2),
                      max_boxes=4, max_detections=5)
    experiment = Experiment(Input(source, view, 8), {"good": Input(source, view, 8), "val": Input(crowds, view, 8)},
                            ResNet(10, width=1 / 16, stem="half"), head, SGD(0.1), steps=2)
    message = r"evals\.val: none of its 3 images has an object that is not a crowd, so that nothing can be scored"
    with pytest.raises(UserError, match=message):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    findings = doctor(experiment, seconds=0.1)
    assert {f.check: f.status for f in (next(findings) for _ in range(5))} == {
        "devices": "ok", "train": "warning", "model": "ok", "evals.good": "ok", "evals.val": "problem"}


def test_a_run_goes_on_without_a_score_that_does_not_exist(tmp_path, capsys):
    """All images with labels turn out to be damaged, and are masked: mAP does not exist."""
    source, folder = coco_file(tmp_path), tmp_path / "cut"
    folder.mkdir()
    for image in ("7.jpg", "9.jpg", "4.jpg"):
        data = (tmp_path / image).read_bytes()
        (folder / image).write_bytes(data if image == "4.jpg" else data[:-200])
    damaged = CocoJson(source.annotations, str(folder))
    experiment = Experiment(Input(source, Resize(16), 8), {"val": Input(damaged, Resize(16), 8, on_bad_image="mask")},
                            Toy(), Classification("sigmoid", max_labels=3), SGD(0.1), steps=2)
    results = train(experiment, tmp_path / "run")
    assert results["val/mAP"] is results["val/mAP_chance"] is None and results["val/images"] == 1
    assert "step 2: val mAP does not exist, loss" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val/mAP"] is None and (tmp_path / "run/checkpoints/2").is_dir()
    assert json.loads((tmp_path / "run/run.json").read_text())["results"] == results
    assert train(experiment, tmp_path / "run") == results  # there is nothing left to do
