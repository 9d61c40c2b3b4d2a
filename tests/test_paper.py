"""The paper's tables, and the studies that fill them."""

import dataclasses
import json
from pathlib import Path

import pytest

from big_vision_lite import config, recipes
from big_vision_lite.commands.laws import report
from big_vision_lite.data.curation import Exclude, NestedSubset
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.scaling import paper
from big_vision_lite.scaling.paper_recipes import MINI_IMAGENET, segmentation
from big_vision_lite.scaling.results import row_of
from big_vision_lite.scaling.study import load

CONFIGS = Path(__file__).parent.parent / "configs"
ARGUMENTS = {"photos": "root=/photos", "near_duplicates": "exclude=/ids.txt,root=/photos"}
"""What a study needs to be told."""
PAPER = sorted((CONFIGS / "paper").glob("*.py"))


def of(path: Path, *more: str):
    told = ",".join(filter(None, (ARGUMENTS.get(path.stem), *more)))
    return load(f"{path}:{told}" if told else str(path))


@pytest.mark.parametrize("path", [*PAPER, *sorted((CONFIGS / "studies").glob("*.py"))], ids=lambda path: path.stem)
def test_every_study_can_be_told_and_kept(path):
    for study in (of(path, "seeds=2"), *([of(path, "scale=full")] if path in PAPER else [])) if (
            path.stem != "quickstart") else (of(path),):
        assert study.name.removeprefix("paper_") == path.stem
        for run in study.ordered():
            assert config.from_json(json.loads(json.dumps(config.to_json(run.experiment)))) == run.experiment
            if run.start:  # or taking over would fail after hours
                before = study[run.start].experiment.backbone
                assert (before.depth, before.width, before.pixels, before.stem) == (
                    run.experiment.backbone.depth, run.experiment.backbone.width, run.experiment.backbone.pixels,
                    run.experiment.backbone.stem)
            if "table" in run.factors:
                table = paper.TABLES[run.factors["table"]]
                assert run.factors["row"] in table.rows


def test_studies_differ_in_what_they_vary():
    data_size = load(str(CONFIGS / "studies" / "data_size.py"))
    pretraining = [run for run in data_size.runs if run.start is None]
    assert [run.experiment.train.curate for run in pretraining] == [
        (NestedSubset(n),) for n in (500, 1_600, 5_000, 16_000, 50_000)]
    assert len({run.experiment.steps for run in pretraining}) == 1
    by_epochs = load(f"{CONFIGS}/studies/data_size.py:epochs=4")
    steps = [run.experiment.steps for run in by_epochs.runs if run.start is None]
    assert steps == [16, 50, 156, 500, 1562]
    coco = of(CONFIGS / "paper" / "coco_detection.py")
    assert coco["imagenet+large,seed=0"].start == "imagenet,seed=0"
    assert coco["imagenet,seed=0"].experiment.train.curate == (NestedSubset(MINI_IMAGENET),)
    noise = load(str(CONFIGS / "studies" / "noise.py"))
    assert [noise.factors(run)["noise"] for run in noise.runs if run.start] == [0.0, 0.1, 0.2, 0.4]
    kept = of(CONFIGS / "paper" / "near_duplicates.py").runs
    assert [run.experiment.train.curate for run in kept] == [(), (Exclude("/ids.txt"),)]
    listed = of(CONFIGS / "paper" / "data_size.py", "scale=full", "root=/coco", "minival=/ids.txt")
    scored = {name: inputs.source for run in listed.runs if run.start for name, inputs in run.experiment.evals.items()}
    assert [*scored] == ["minival"] and scored["minival"].only == "/ids.txt"
    with pytest.raises(UserError, match="needs root=FOLDER"):
        load(f"{CONFIGS}/paper/near_duplicates.py:exclude=/ids.txt")


def test_reported_values_carry_their_provenance():
    assert {reported.tag for table in paper.TABLES.values() for row in table.rows.values() for reported in row
            if reported} <= {"S", "S2", "M-hi", "M-med", "M-lo"}
    for table in paper.TABLES.values():
        assert all(len(row) == len(table.columns) for row in table.rows.values()), table.name
    said = paper.TABLES["coco"].text()
    lines = {tuple(line.split()[:2]): line for line in said.splitlines()}
    assert "37.4 (reported)" in lines["ImageNet+300M", "AP@[.5,.95]"]
    assert "34.3 (reported, by a second source)" in lines["ImageNet", "AP@[.5,.95]"]
    assert "53.6 (reported, unverified)" in lines["ImageNet", "AP@.5"]
    assert said.count("not run") == 10
    assert "unknown" in paper.TABLES["capacity"].text()


def test_ours_beside_the_papers():
    rows = [{"table": "voc12", "row": "300M", "status": "done", "scale": "mini", "test/mIoU": value, "x/AP": "0.9"}
            for value in ("0.5", "0.6")]
    rows += [{"table": "voc12", "row": "ImageNet", "status": "failed", "test/mIoU": ""}, {"table": "", "row": ""},
             {"table": "voc12", "row": "unknown", "test/mIoU": "0.1"}, {"run": "another"}]
    cells = {row: cells for row, *cells in paper.TABLES["voc12"].cells(rows)}
    assert cells["300M"] == ["mIoU", "75.3 (reported, unverified)", "55 (50 to 60, 2 runs)", "-20.3"]
    assert cells["ImageNet"][2:] == ["not run", ""]
    assert "small stand-ins" in paper.TABLES["voc12"].text(rows)
    assert "small stand-ins" not in paper.TABLES["coco"].text(rows)


def test_one_recipe_for_segmentation():
    config_ = config.load(f"{CONFIGS}/transfer/voc12_segmentation.py:root=/voc")
    study = segmentation("full", None, root="/voc")
    assert dataclasses.replace(study, backbone=dataclasses.replace(study.backbone, dtype="float32")) == config_


def trained(folder: Path, experiment: Experiment, images: int, classes: int, **scores: float) -> str:
    """A finished run's folder."""
    folder.mkdir(parents=True)
    config.save(experiment, folder / "config.json")
    (folder / "data.json").write_text(json.dumps({"images": images, "classes": ["c"] * classes, "fingerprint": "f"}))
    (folder / "run.json").write_text(json.dumps({"step": experiment.steps, "versions": {"jax": "1"},
                                                 "results": {f"val/{name}": score for name, score in scores.items()}}))
    return str(folder)


def test_finished_runs_stand_in_tables_by_their_configs(tmp_path, capsys):
    data = ImageFolder("/photos")
    evals = {"val": data}
    imagenet = recipes.imagenet_pretraining(data, evals, 1_281_167)
    first = trained(tmp_path / "one" / "imagenet", imagenet, 1_281_167, 1_000, top1=0.77)
    large = dataclasses.replace(recipes.jft_pretraining(data, evals, 9_011_219),
                                transfer=dataclasses.replace(imagenet.transfer, init=first))
    both = trained(tmp_path / "two" / "large", large, 9_011_219, 5_000, mAP=0.5)

    def tuned(name: str, init: str | None, images: int = 117_266, recipe="paper", depth: int = 101, **more) -> str:
        found = recipes.faster_rcnn(data, evals, recipe=recipe, steps=9, drops=(0.5,), init=init, **more)
        found = dataclasses.replace(found, backbone=dataclasses.replace(found.backbone, depth=depth))
        return trained(tmp_path / "three" / name, found, images, 80, AP=0.3 + len(name) / 100, AP50=0.5)

    # Folders that were moved together are found beside each other.
    (tmp_path / "moved").mkdir()
    Path(first).rename(tmp_path / "moved" / "imagenet")
    Path(both).rename(tmp_path / "moved" / "large")
    first, both = (str(tmp_path / "moved" / name) for name in ("imagenet", "large"))
    runs = [tuned("a", first), tuned("bb", first, seed=1), tuned("ccc", both), tuned("d50", first, depth=50),
            tuned("fpn", first, recipe="fpn"), tuned("frozen", first, freeze=True), tuned("few", first, images=256),
            tuned("hub", "hf:someone/weights")]
    assert report([*runs, "--table", "coco"]) == 0
    said = capsys.readouterr().out
    lines = {tuple(line.split()[:2]): line for line in said.splitlines()}
    assert "31.5 (31 to 32, 2 runs)  -2.8" in lines["ImageNet", "AP@[.5,.95]"]
    assert lines["ImageNet+300M", "AP@[.5,.95]"].split()[-2:] == ["33", "-4.4"]
    assert "not run" in lines["300M", "AP@.5"]
    for why in ("d50 is in no row: its backbone is ResNet, depth 50", "fpn is in no row: its variant is FPN",
                "frozen is in no row: some of its layers were frozen", "few is in no row: it learnt from 256 images",
                "hub is in no row: what 'hf:someone/weights' learnt from, no config tells"):
        assert why in said, why
    assert report([*runs, "--table", "capacity"]) == 0
    assert next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ResNet-50, ImageNet ")
                ).split()[-2:] == ["unknown", "33"]
    assert report([first, "--table", "imagenet"]) == 0
    assert next(line for line in capsys.readouterr().out.splitlines() if line.startswith("random ")
                ).split()[-2:] == ["77", "-0.5"]
    # A page takes runs as well, and rows have what a study's have.
    assert report([first, both, *runs, "--out", str(tmp_path / "page"), "--draws", "20"]) == 0
    assert paper.TABLES["coco"].title in (tmp_path / "page" / "report.html").read_text()
    row = row_of(Path(runs[2]))
    expected = {"run": "ccc", "study": "three", "status": "done", "images": 1_281_167, "classes": 1_000, "depth": 101,
                "init": "pretraining", "stage": "transfer", "head": "FasterRCNN", "frozen": False, "val/AP50": 0.5}
    assert {name: row[name] for name in expected} == expected


def test_runs_that_a_table_cannot_take(tmp_path, capsys):
    data = ImageFolder("/photos")
    pretraining = recipes.imagenet_pretraining(data, {"val": data}, 100)
    run = trained(tmp_path / "run", pretraining, 100, 1_000, top1=0.5)
    (tmp_path / "run" / "run.json").write_text('{"step": 3}')
    assert report([run, "--table", "imagenet"]) == 0 and "not run" in capsys.readouterr().out
    assert report([run, "--draws", "20"]) == 0 and "run 'run' is missing" in capsys.readouterr().out
    (tmp_path / "run" / "config.json").write_text('{"class": "mine:Own"}')
    with pytest.raises(UserError, match="allow its module with --import mine"):
        report([run, "--table", "imagenet"])
    with pytest.raises(UserError, match=r"no results.csv in .*, or that of a run"):
        report([str(tmp_path), "--table", "imagenet"])
