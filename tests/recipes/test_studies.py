"""The studies in configs/: their runs follow from one another, and differ in what they vary."""

import dataclasses
import json

import pytest
from config_arguments import CONFIGS, TABLE_STUDIES
from config_arguments import load_study as load

from big_vision_lite import config
from big_vision_lite.data.curation.steps import Exclude, NestedSubset
from big_vision_lite.errors import UserError
from big_vision_lite.recipes.paper import Full
from big_vision_lite.scaling.paper.tables import TABLES

PAPER = (*(f"paper/tables.py:table={table}" for table in TABLE_STUDIES), "paper/bit_pretraining_size.py:",
         "paper/near_duplicates.py:exclude=/ids.txt,root=/photos", "paper/coco_keypoints.py:")
SEVERAL_SEEDS = (*PAPER, "studies/boxes.py:", "studies/data_size.py:", "studies/detection_start.py:",
                 "studies/photos.py:root=/photos", "studies/surface.py:",
                 "studies/self_supervised.py:root=/photos,target=/others,methods=(simclr,byol,supervised)",
                 "studies/pseudo_labels.py:root=/photos,rounds=2,labels=/runs",
                 "studies/pruning.py:root=/photos,scores=/runs",
                 "studies/surface.py:root=/photos,target=/others,target_images=(100,1000),wrong=(0,20)")


@pytest.mark.parametrize("spec, arguments", [
    *((spec, {"seeds": 2}) for spec in SEVERAL_SEEDS),
    *((spec, {"scale": "full"} | ({"matching": "/names.txt"} if "tables" in spec else {})) for spec in PAPER),
    ("studies/quickstart.py", {})])
def test_runs_of_each_study_fit_together(spec, arguments):
    study = load(spec, **arguments)
    assert study.name.removeprefix("paper_") in spec
    for run in study.ordered():
        assert config.from_json(json.loads(json.dumps(config.to_json(run.experiment)))) == run.experiment
        if run.start:  # or loading weights would fail after hours
            before, after = study[run.start].experiment.backbone, run.experiment.backbone
            assert (before.depth, before.width, before.pixels, before.stem) == (
                after.depth, after.width, after.pixels, after.stem)
        if "table" in run.factors:
            assert run.factors["row"] in TABLES[run.factors["table"]].rows


def test_studies_differ_in_what_they_vary():
    pretraining = [run for run in load("studies/data_size.py").runs if run.start is None]
    assert [run.experiment.train.curate for run in pretraining] == [
        (NestedSubset(images),) for images in (500, 1_600, 5_000, 16_000, 50_000)]
    assert len({run.experiment.steps for run in pretraining}) == 1
    by_epochs = load("studies/data_size.py:epochs=4")
    assert [run.experiment.steps for run in by_epochs.runs if run.start is None] == [16, 50, 156, 500, 1562]
    coco = load("paper/tables.py:table=coco")
    assert coco["imagenet+large,seed=0"].start == "imagenet,seed=0"
    noise = load("studies/surface.py:wrong=(20,40),subsets=(1000,),seen=(8000,),seeds=1")
    assert [noise.factors(run)["noise"] for run in noise.runs] == [0.2, 0.4]
    boxes = load("studies/boxes.py:seeds=1")
    targets = [run for run in boxes.runs if "target" in run.name]
    assert [boxes.factors(run)["images"] for run in targets] == [0, 0, 2000, 2000, 32000, 32000]
    duplicates = load("paper/near_duplicates.py:exclude=/ids.txt,root=/photos").runs
    assert [run.experiment.train.curate for run in duplicates] == [(), (Exclude("/ids.txt"),)]
    minival = load("paper/tables.py:table=data_size,scale=full,root=/coco,minival=/ids.txt")
    evals = {name: inputs.source for run in minival.runs if run.start for name, inputs in run.experiment.evals.items()}
    assert [*evals] == ["minival"] and evals["minival"].only == "/ids.txt"


@pytest.mark.parametrize("spec, message", [
    ("paper/near_duplicates.py:exclude=/ids.txt", "needs root=FOLDER"),
    ("paper/tables.py:table=voc12,minival=/ids.txt", "table=voc12 does not use"),
    ("studies/pseudo_labels.py:root=/photos,rounds=1", "expected the folder of the teachers' runs"),
    ("studies/data_size.py:steps=10,epochs=4", "steps=10 and epochs=4 are both given"),
])
def test_what_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        load(spec)


def test_one_recipe_for_segmentation():
    experiment = config.load(f"{CONFIGS}/transfer/voc12_segmentation.py:root=/voc")
    of_study = Full(root="/voc").segmentation(None)
    float32 = dataclasses.replace(of_study.backbone, dtype="float32")
    assert dataclasses.replace(of_study, backbone=float32) == experiment


def test_the_surface_transfers_its_longest_runs():
    study = load("studies/surface.py:root=/photos,target=/others,target_images=(100,1000),subsets=(1400,8000),seeds=1")
    starts = {(run.factors["target_images"], run.start) for run in study.runs if run.start}
    assert {start for _, start in starts} == {f"images={images},depth=10,rate=0.1,seed=0,seen={seen}"
                                              for images, seen in ((1400, 112000), (8000, 449984))}
    assert len([run for run in study.runs if "target_images" in run.factors]) == 2 * 2 * 2 + 2
