"""Recipes on folders of small photos: classes against superclasses, and transfer to another folder."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.curation.steps import LabelNoise, NestedSubset, ParentLabels, curation
from big_vision_lite.errors import UserError
from big_vision_lite.recipes.photos import photos_pretraining, photos_transfer
from big_vision_lite.training.loop import train
from big_vision_lite.training.trainer import Trainer

CLASSES = {"ant": "insect", "bee": "insect", "cat": "pet", "dog": "pet"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Photos of noise: 12 for training and 6 for each evaluation per class."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, images in (("train", 12), ("val", 6), ("test", 6)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    (root / "classes.csv").write_text("".join(f"{child},{parent}\n" for child, parent in CLASSES.items()))
    return root


def small(experiment):
    backbone = dataclasses.replace(experiment.backbone, width=1 / 16)
    return dataclasses.replace(experiment, backbone=backbone, log_every=1)


def test_classes_and_superclasses_are_learned_from_the_same_photos_and_scored_on_the_same_answers(root, tmp_path):
    hierarchy = str(root / "classes.csv")
    arguments = {"steps": 2, "batch_size": 8}
    subset, noise = NestedSubset(16, stratified=True), LabelNoise(0.75)
    fine = photos_pretraining(str(root), curate=curation(subset=subset, noise=noise), hierarchy=hierarchy, **arguments)
    coarse = photos_pretraining(str(root), **arguments,
                                curate=curation(subset=subset, parents=ParentLabels(hierarchy), noise=noise))
    fine_data, coarse_data = fine.train.open(), coarse.train.open()
    assert [fine_data.labels(i)[0] for i in range(16)] == [coarse_data.labels(i)[0] for i in range(16)]
    scores = [train(small(experiment), tmp_path / name) for name, experiment in (("fine", fine), ("coarse", coarse))]
    # Chance is a quarter and a half: a score of one kind cannot be mistaken for the other.
    assert all(f"{split}/superclass_top1" in scores[0] for split in ("val", "test"))
    assert "val/superclass_top1" not in scores[1] and scores[0]["val/images"] == scores[1]["val/images"] == 24
    coarse_eval = Trainer(small(coarse)).open_eval("val")[1]
    fine_eval = Trainer(small(fine)).open_eval("val")[1]
    for i in range(24):
        (id_, (label,)), (same, (parent,)) = fine_eval.labels(i), coarse_eval.labels(i)
        assert id_ == same and CLASSES[fine_eval.classes[label]] == coarse_eval.classes[parent]


@pytest.mark.parametrize("freeze", [False, True])
def test_a_backbone_that_learned_superclasses_is_transferred(root, tmp_path, freeze):
    parents = (ParentLabels(str(root / "classes.csv")),)
    train(small(photos_pretraining(str(root), steps=1, batch_size=8, curate=parents)), tmp_path / "coarse")
    transfer = photos_transfer(str(tmp_path / "coarse"), str(root), images=8, freeze=freeze, steps=2, batch_size=8)
    assert train(small(transfer), tmp_path / "transfer")["test/images"] == 24


def test_a_hierarchy_that_lacks_a_class_is_an_error_before_the_first_step(root, tmp_path):
    file = tmp_path / "classes.csv"
    file.write_text("ant,insect\nbee,insect\ncat,pet\n")
    with pytest.raises(UserError, match=r"evals.val: .*class 'dog' has no parent; expected exactly one line 'dog,PAR"):
        train(small(photos_pretraining(str(root), steps=1, batch_size=8, hierarchy=str(file))), tmp_path / "run")
