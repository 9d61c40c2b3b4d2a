"""The report of a run and the comparison of runs: what they say, and that a browser shows them."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.cli import main
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.scaling.report import words
from big_vision_lite.training.loop import train
from big_vision_lite.training.metrics import read_details, read_run
from big_vision_lite.training.optimizers import SGD

pytestmark = pytest.mark.usefixtures("compile_once")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def experiment(head=None, view=None, source=None, **fields):
    view, source = view or Resize(32), source or EmojiScenes("train", 16, size=32, classes=4, objects=(1, 2))
    return Experiment(**{
        "train": Input(source, view, 8), "evals": {"validation": Input(source, view, 8)},
        "backbone": ResNet(10, width=1 / 16), "head": head or Classification(), "optimizer": SGD(0.05), "steps": 4,
        "log_every": 1, "eval_every": 2, **fields})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a classifier, the same at another rate, a segmenter and a detector."""
    folder = tmp_path_factory.mktemp("runs")
    fit = ResizeToFit(32, 32, ((32, 32),), random=False)
    boxes = FasterRCNN(FPN(channels=8, width=16, pre_nms_topk=(50, 20), post_nms_topk=(20, 10), rois_per_image=8),
                       metric="VOC_AP50", max_boxes=10)
    experiments = {
        "slow": experiment(), "fast": experiment(optimizer=SGD(0.2), steps=6),
        "masks": experiment(Segmentation(ASPPL((1, 2)), size=32), fit),
        "boxes": experiment(boxes, dataclasses.replace(fit, masks=False)),
    }
    for name, made in experiments.items():
        train(made, folder / name)
    return folder


@pytest.mark.parametrize(("name", "parts"), [
    ("slow", ("mAP on validation:", "Average precision per class on validation, at step 4", "by chance",
              "Precision against recall on validation", "optimizer.learning_rate")),
    ("masks", ("Mean IoU on validation:", "IoU per class on validation", "What is taken for what")),
    ("boxes", ("VOC AP at IoU 0.5 on validation:", "VOC AP at IoU 0.5 per class on validation",
               "Precision against recall on validation")),
])
def test_a_run_has_a_report(runs, name, parts, tmp_path, capsys):
    assert main(["report", str(runs / name), "--out", str(tmp_path)]) == 0
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    for part in (*parts, "Loss against steps", "Predictions", "images/s in training", "commit"):
        assert part in page, part
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings[0] == "Curves" and headings[-1] == "What is missing"
    assert page.index('class="answer"') < page.index("<h2>")  # conclusions come first
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)  # it needs no other file


def test_per_class_scores_are_kept_and_add_up_to_the_metric(runs):
    for name, metric in (("slow", "mAP"), ("masks", "mIoU_true"), ("boxes", "VOC_AP50")):
        step, details = read_details(runs / name)["validation"]
        scores = [one["score"] for one in details["classes"]]
        expected = read_run(runs / name)["results"][f"validation/{metric}"]
        assert step == 4 and np.mean(scores) == pytest.approx(expected, abs=1e-5)


def test_evaluate_writes_them_anew(runs, tmp_path):
    copied = shutil.copytree(runs / "slow", tmp_path / "run")
    before = (copied / "evaluations" / "validation-4-details.json").read_text()
    shutil.rmtree(copied / "evaluations")
    assert f"scores per class on validation: bvl evaluate {copied} writes them" in report(copied)
    assert main(["evaluate", str(copied)]) == 0
    assert json.loads((copied / "evaluations" / "validation-4-details.json").read_text()) == json.loads(before)
    (copied / "evaluations" / "validation-4-details.json").write_text('{"classes": 3}')
    assert main(["report", str(copied)]) == 2


def report(folder):
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text()


def test_unfinished_runs_say_so(runs, tmp_path):
    copied = shutil.copytree(runs / "slow", tmp_path / "run")
    run = json.loads((copied / "run.json").read_text())
    del run["results"]
    (copied / "run.json").write_text(json.dumps(run))
    (copied / "predictions.png").write_bytes(b"no picture")
    text = report(copied)
    assert "the run is at step 4 of 4; the same command resumes it" in text and "no picture of predictions" in text
    (copied / "run.json").unlink()
    (copied / "metrics.jsonl").unlink()
    assert "no checkpoint yet" in report(copied)


def test_runs_side_by_side(runs, tmp_path, capsys):
    assert main(["compare", str(runs / "slow"), str(runs / "fast"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    scores = {name: read_run(runs / name)["results"]["validation/mAP"] for name in ("slow", "fast")}
    best = max(scores, key=scores.get)
    assert f"best mAP: {best} with {scores[best]:.4g}" in printed and "32 to 48 images" in printed
    assert re.search(r"optimizer\.learning_rate +0\.05 +0\.2\n", printed)
    assert re.search(r"\n  steps +4 +6\n", printed) and "backbone.depth" not in printed
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    assert len(rows[0]) == len((tmp_path / "out" / "compare.csv").read_text().splitlines()[0].split(","))
    assert [row["run"] for row in rows] == ["slow", "fast"]
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.05", "0.2"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "mAP against images seen" in page and "Training loss against images seen" in page


def test_other_tasks_and_wrong_names_side_by_side(runs, tmp_path, capsys):
    assert main(["compare", str(runs / "slow"), str(runs / "boxes"), "--out", str(tmp_path)]) == 0
    assert "no two runs have the same main metric" in capsys.readouterr().out
    for arguments, message in (([], "needs two runs or more"), ([runs / "slow"] * 2, "named twice"),
                               ([runs / "slow", tmp_path], "config.json")):
        assert main(["compare", *map(str, arguments), "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    assert main(["report", str(runs / "slow"), "--metric", "validation/mAP"]) == 2
    assert "--metric is for studies" in capsys.readouterr().err


def test_metrics_in_words():
    assert words.title("mAP on test") == "mAP on test" and words.title("loss") == "Loss"
    assert words.metric("test/top1") == "top-1 accuracy on test" and words.metric("own_score") == "own score"
    assert [words.count(value) for value in (1.849, 12345.6)] == ["1.85", "12,346"]
    assert [words.duration(seconds) for seconds in (59.6, 600, 9000)] == ["60 s", "10.0 min", "2.5 h"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_them(runs, tmp_path):
    """Every picture loads, nothing is wider than a phone, and the console stays empty."""
    assert main(["compare", str(runs / "slow"), str(runs / "fast"), "--out", str(tmp_path)]) == 0
    assert main(["report", str(runs / "masks"), "--out", str(tmp_path)]) == 0
    probe = ("<script>window.onerror = e => document.title = 'error ' + e; window.onload = () => {"
             "const broken = [...document.images].filter(i => !i.complete || !i.naturalWidth).length;"
             "document.body.setAttribute('data-probe', [document.images.length, broken,"
             "document.documentElement.scrollWidth <= window.innerWidth].join())}</script>")
    for name in ("compare.html", "report.html"):
        page = tmp_path / f"probed-{name}"
        page.write_text((tmp_path / name).read_text().replace("</head>", probe + "</head>"))
        for width in (1280, 500):  # headless windows are at least 500 pixels wide
            done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                                   f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
                                   "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
            pictures, broken, fits = re.search(r'data-probe="(\d+),(\d+),(\w+)"', done.stdout).groups()
            assert int(pictures) >= 2 and broken == "0" and fits == "true" and "<title>error" not in done.stdout
            assert "CONSOLE" not in done.stderr
