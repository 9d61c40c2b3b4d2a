"""The paper's tables, and the studies that fill them."""

import json
from pathlib import Path

import pytest

from big_vision_lite import config
from big_vision_lite.data.curation import Exclude, NestedSubset
from big_vision_lite.errors import UserError
from big_vision_lite.scaling import paper
from big_vision_lite.scaling.paper_recipes import MINI_IMAGENET
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
