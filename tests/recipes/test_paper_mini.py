"""The paper's tables in miniature: their proportions are the paper's, and their comparisons vary one thing."""

import dataclasses

import numpy as np
import pytest
from config_arguments import TABLE_STUDIES
from config_arguments import load_study as load

from big_vision_lite.data.curation.hierarchy import EMOJI, Hierarchy
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes, vocabulary
from big_vision_lite.errors import UserError
from big_vision_lite.recipes.paper_mini import CLASSES, LARGE_IMAGES, SMALL_CLASSES
from big_vision_lite.scaling.studies.study import Run


def composed(inputs: Input, images: int) -> Input:
    """The same data, composed on access, with fewer images."""
    fields = {field.name: getattr(inputs.source, field.name) for field in dataclasses.fields(EmojiScenes)}
    curate = tuple(dataclasses.replace(step, images=round(step.images * images / LARGE_IMAGES))
                   if hasattr(step, "images") else step for step in inputs.curate)
    return dataclasses.replace(inputs, source=EmojiScenes(**fields | {"images": images}), curate=curate)


def seen(run: Run) -> int:
    return run.experiment.steps * run.experiment.train.batch_size


def test_compute_and_passes_are_the_papers():
    coco = load("paper/tables.py:table=coco")
    large, small = coco["large,seed=0"], coco["imagenet,seed=0"]
    assert seen(large) == 4 * large.experiment.train.source.length
    assert seen(large) / seen(small) == pytest.approx(36 / 5, rel=0.01)
    lengths = [seen(load("paper/tables.py:table=training_length")[f"length={row},seed=0"]) for row in
               ("12M", "24M", "36M")]
    assert lengths == pytest.approx([seen(large) / 3, seen(large) * 2 / 3, seen(large)], rel=0.01)
    for equal, expected in (("steps", [seen(large)] * 4), ("passes", [seen(large) / part for part in (30, 10, 3, 1)])):
        study = load(f"paper/tables.py:table=data_size,equal={equal}")
        assert [seen(run) for run in study.runs if run.start is None] == pytest.approx(expected, rel=0.01)


def test_tasks_share_no_class_and_no_scene():
    inputs = {}
    for table in ("coco", "voc07", "voc12"):
        (inputs[table], *others) = [run.experiment for run in load(f"paper/tables.py:table={table}").runs if run.start
                                    and run.experiment.evals.keys() == {"test"}]
        assert all(other.train == inputs[table].train and other.evals == inputs[table].evals for other in others)
    large = load("paper/tables.py:table=coco")["large,seed=0"].experiment.train.source
    names = [set(experiment.train.source.classes) for experiment in inputs.values()]
    names.append(set(vocabulary(large.classes).names))
    assert sum(map(len, names)) == len(set.union(*names)) == len(vocabulary().names) and large.classes == CLASSES
    prints = {source.fingerprint for experiment in inputs.values()
              for source in (experiment.train.source, experiment.evals["test"].source)}
    assert len(prints) == 6
    assert all(experiment.evals["test"].source.length >= 1_000 for experiment in inputs.values())


def test_both_vocabularies_are_learned_from_the_same_images():
    study = load("paper/tables.py:table=classes")
    few, all_ = (composed(study[f"classes={row},seed=0"].experiment.train, 1_000).open() for row in ("1K", "18K"))
    assert study["classes=1K,seed=0"].experiment.steps == study["classes=18K,seed=0"].experiment.steps
    assert manifest(few)["sha256"] == manifest(all_)["sha256"] and len(few) == 100
    assert few.classes == vocabulary(SMALL_CLASSES).names and set(few.classes) < set(all_.classes)
    for index in range(100):
        names = [{data.classes[label] for label in data.labels(index)[1]} for data in (few, all_)]
        assert names[0] and names[0] == names[1] & set(few.classes)


def test_the_large_set_has_ancestors_and_wrong_labels():
    experiment = load("paper/tables.py:table=coco")["large,seed=0"].experiment
    data = composed(experiment.train, 1_000).open()
    assert manifest(data)["noise"][0]["precision"] == pytest.approx(0.8, abs=0.04)
    above = Hierarchy(EMOJI).parents
    for index in range(50):
        names = {data.classes[label] for label in data.labels(index)[1]}
        assert {parent for name in names for parent in above.get(name, ())} <= names
        assert any(len(above.get(name, ())) == 0 for name in names)
    evaluation = composed(experiment.evals["validation"], 20)
    assert evaluation.open().classes == data.classes
    clean = dataclasses.replace(evaluation, curate=()).open()
    for index in range(20):
        given, true = ({of.classes[label] for label in of.labels(index)[1]} for of in (evaluation.open(), clean))
        assert given & set(clean.classes) == true


def test_both_rows_of_imagenet_have_one_protocol():
    random, tuned = (load("paper/tables.py:table=imagenet")[name].experiment for name in
                     ("random,seed=0", "tuned,large,seed=0"))
    rate = dataclasses.replace(tuned.optimizer, learning_rate=random.optimizer.learning_rate)
    assert dataclasses.replace(tuned, transfer=random.transfer, optimizer=rate) == random
    small = load("paper/tables.py:table=coco")["imagenet,seed=0"].experiment
    assert small.train == random.train and small.evals.keys().isdisjoint(random.evals)  # rates are chosen elsewhere


def test_rates_are_swept_for_each_set_on_validation():
    study = load("paper/tables.py:table=coco,sweep=(0.003,0.02)")
    assert {(run.factors["set"], run.experiment.optimizer.learning_rate) for run in study.runs} == {
        (name, rate) for name in ("small", "large") for rate in (0.003, 0.02)}
    assert all(list(run.experiment.evals) == ["validation"] and run.start is None for run in study.runs)
    coco = load("paper/tables.py:table=coco,rates=(0.003,0.02)")
    assert [coco[name].experiment.optimizer.learning_rate for name in
            ("imagenet,seed=0", "large,seed=0", "imagenet+large,seed=0")] == [0.003, 0.02, 0.02]
    assert coco["large,seed=0"].factors["rate_choice"] == "given"
    assert load("paper/tables.py:table=coco")["imagenet,seed=0"].factors["rate_choice"] == "untuned"
    with pytest.raises(UserError, match=r"sweep=.*scale=full"):
        load("paper/tables.py:table=coco,scale=full,sweep=(0.003,)")


@pytest.mark.parametrize("table", [table for table in TABLE_STUDIES if table != "imagenet"])
def test_transfers_are_as_long_as_they_are_told(table):
    study = load(f"paper/tables.py:table={table},transfer_steps=77,transfer_rate=0.1")
    transfers = [run.experiment for run in study.runs if run.start and not run.name.startswith("imagenet+")]
    assert len(transfers) >= 2
    assert all(e.steps == 77 and e.optimizer.learning_rate == 0.1 and e.train.batch_size == 16 for e in transfers)


def test_the_emojis_groups_are_a_hierarchy():
    names = vocabulary().names
    ancestors = Hierarchy(EMOJI).ancestors_of(names)
    assert all(len(above) == 2 and above[0].startswith(f"{above[1]}: ") for above in ancestors)
    assert not set(names) & {name for above in ancestors for name in above}
    assert np.unique([above[1] for above in ancestors]).size == 5
