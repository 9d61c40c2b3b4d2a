"""The paper's tables."""

import dataclasses
import json
from pathlib import Path

import pytest

from big_vision_lite import config
from big_vision_lite.commands.laws import report
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import pretraining, transfer
from big_vision_lite.scaling.paper.tables import TABLES
from big_vision_lite.scaling.studies.results import row_of


def test_reported_values_carry_their_provenance():
    assert {reported.tag for table in TABLES.values() for row in table.rows.values() for reported in row
            if reported} <= {"S", "S2", "M-hi", "M-med", "M-lo"}
    for table in TABLES.values():
        assert all(len(row) == len(table.columns) for row in table.rows.values()), table.name
    text = TABLES["coco"].text()
    lines = {tuple(line.split()[:2]): line for line in text.splitlines()}
    assert "37.4 (reported)" in lines["ImageNet+300M", "AP@[.5,.95]"]
    assert "34.3 (reported)" in lines["ImageNet", "AP@[.5,.95]"]
    capacity = {tuple(line.split()[:2]): line for line in TABLES["capacity"].text().splitlines()}
    assert "1.87 (reported, by a second source)" in capacity["ResNet-50,", "gain"]
    assert "53.6 (reported, unverified)" in lines["ImageNet", "AP@.5"]
    assert text.count("not run") == 10
    assert "unknown" in TABLES["capacity"].text()


def test_ours_beside_the_papers():
    rows = [{"table": "voc12", "row": "300M", "status": "done", "scale": "mini", "test/mIoU": value, "x/AP": "0.9"}
            for value in ("0.5", "0.6")]
    rows += [{"table": "voc12", "row": "ImageNet", "status": "failed", "test/mIoU": ""}, {"table": "", "row": ""},
             {"table": "voc12", "row": "unknown", "test/mIoU": "0.1"}, {"run": "another"}]
    cells = {row: cells for row, *cells in TABLES["voc12"].cells(rows)}
    assert cells["300M"] == ["mIoU", "75.3 (reported, unverified)", "55 (50 to 60, 2 runs)", "-20.3"]
    assert cells["ImageNet"][2:] == ["not run", ""]
    assert "small stand-ins" in TABLES["voc12"].text(rows)
    assert "small stand-ins" not in TABLES["coco"].text(rows)


def write_run(folder: Path, experiment: Experiment, images: int, classes: int, **metrics: float) -> str:
    """A finished run's folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.dumps(experiment))
    (folder / "data.json").write_text(json.dumps({"images": images, "classes": ["c"] * classes, "fingerprint": "f",
                                                  "multi_label": False, "sha256": ""}))
    run = {"format": config.FORMAT, "step": experiment.steps, "versions": {"jax": "1"},
           "main_metric": {"name": next(iter(metrics)), "direction": "higher", "unit": ""},
           "results": {f"val/{name}": value for name, value in metrics.items()}}
    (folder / "run.json").write_text(json.dumps(run))
    return str(folder)


def test_single_runs_stand_in_the_row_that_is_named(tmp_path, capsys):
    data = ImageFolder("/photos")
    evals = {"val": data}
    imagenet = pretraining.imagenet_pretraining(data, evals)
    first = write_run(tmp_path / "one" / "imagenet", imagenet, 1_281_167, 1_000, top1=0.77)
    large = dataclasses.replace(pretraining.jft_pretraining(data, evals),
                                transfer=dataclasses.replace(imagenet.transfer, init=first))
    both = write_run(tmp_path / "two" / "large", large, 9_011_219, 5_000, mAP=0.5)
    # Folders that were moved together are found beside each other.
    (tmp_path / "moved").mkdir()
    Path(first).rename(tmp_path / "moved" / "imagenet")
    Path(both).rename(tmp_path / "moved" / "large")
    first, both = (str(tmp_path / "moved" / name) for name in ("imagenet", "large"))

    def detector(name: str, init: str, **more) -> str:
        experiment = transfer.faster_rcnn(data, evals, recipe="paper", length=9, warmup=1, drops=(0.5,), init=init,
                                          **more)
        return write_run(tmp_path / "three" / name, experiment, 117_266, 80, AP=0.3 + len(name) / 100, AP50=0.5)

    a, b, c = detector("a", first), detector("bb", first, seed=1), detector("ccc", both)
    assert report([a, b, "--table", "coco", "--row", "ImageNet"]) == 0
    text = capsys.readouterr().out
    lines = {tuple(line.split()[:2]): line for line in text.splitlines()}
    assert "31.5 (31 to 32, 2 runs)  -2.8" in lines["ImageNet", "AP@[.5,.95]"]
    assert "not run" in lines["300M", "AP@.5"]
    assert "Frozen in ours: statistics of BatchNorm.\nOurs are scored on: val.\n" in text
    assert report([c, "--table", "coco"]) == 0 and capsys.readouterr().out.count("not run") == 10  # no --row
    assert report([first, "--table", "imagenet", "--row", "random"]) == 0
    assert next(line for line in capsys.readouterr().out.splitlines() if line.startswith("random ")
                ).split()[-2:] == ["77", "-0.5"]
    with pytest.raises(UserError, match=r"no such row in table coco; valid: He et al., ImageNet, 300M, ImageNet\+300M, "
                                        "Inception-ResNet-v2"):
        report([a, "--table", "coco", "--row", "imagenet"])
    with pytest.raises(UserError, match="give --table as well"):
        report([a, "--row", "ImageNet"])
    # A page takes runs as well, and rows have what a study's have.
    assert report([first, both, a, b, c, "--out", str(tmp_path / "page"), "--bootstrap", "20"]) == 0
    assert "of 5 runs are finished" in (tmp_path / "page" / "report.html").read_text()
    row = row_of(Path(c))
    expected = {"run": "ccc", "study": "three", "status": "done", "images": 1_281_167, "classes": 1_000, "depth": 101,
                "init": "pretraining", "stage": "transfer", "head": "FasterRCNN", "frozen": False, "val/AP50": 0.5,
                "main_metric": "val/AP", "direction": "higher", "unit": ""}
    assert {name: row[name] for name in expected} == expected


def test_runs_that_a_table_cannot_take(tmp_path, capsys):
    data = ImageFolder("/photos")
    experiment = pretraining.imagenet_pretraining(data, {"val": data}, steps=1)
    run = write_run(tmp_path / "run", experiment, 100, 1_000, top1=0.5)
    (tmp_path / "run" / "run.json").write_text('{"format": 2, "step": 3}')
    assert report([run, "--table", "imagenet", "--row", "300M"]) == 0 and "not run" in capsys.readouterr().out
    assert report([run, "--bootstrap", "20"]) == 0 and "the run is at step 0 of 1;" in capsys.readouterr().out
    (tmp_path / "run" / "config.json").write_text('{"format": 2, "class": "mine:Own"}')
    with pytest.raises(UserError, match="allow its module with --import mine"):
        report([run, "--table", "imagenet"])
    with pytest.raises(UserError, match=r"no results.csv in .*, or that of a run"):
        report([str(tmp_path), "--table", "imagenet"])
