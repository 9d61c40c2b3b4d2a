"""Grids: branches that share a trunk, and rates chosen by a sweep."""

import dataclasses

import numpy as np
import pytest
from small_studies import small_experiment

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.studies.cost import flops_to_run, training_flops
from big_vision_lite.scaling.studies.grid import Rates, lengths
from big_vision_lite.scaling.studies.study import Study
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine


def recipe(steps, schedule):
    return dataclasses.replace(small_experiment(steps=steps), optimizer=SGD(0.05, schedule=schedule))


def small_grid(**more):
    return lengths("a", recipe, (320, 1_000, 3_200), 16, warmup=3, factors={"images": 40}, **more)


def test_branches_have_the_rates_of_their_trunk():
    trunk, *runs = small_grid()
    assert trunk.name == "trunk,a" and trunk.factors["stage"] == "trunk"
    assert [run.name for run in runs] == ["a,seen=320", "a,seen=992", "a,seen=3200"]
    assert trunk.experiment.keep == tuple(run.experiment.branch.step for run in runs) == (16, 50, 160)
    assert trunk.experiment.steps == 160
    rates = {run.name: np.asarray([float(run.experiment.optimizer.schedule.build(run.experiment.steps)(step))
                                   for step in range(run.experiment.steps)]) for run in (trunk, *runs)}
    np.testing.assert_allclose(rates["trunk,a"], np.minimum(np.arange(1, 161) / 4, 1))
    for run in runs:
        shared = run.experiment.branch.step
        np.testing.assert_array_equal(rates[run.name][:shared], rates["trunk,a"][:shared])
        assert 0 < rates[run.name][-1] < rates[run.name][shared] < 1 and (np.diff(rates[run.name][shared:]) < 0).all()
    study = Study("s", (trunk, *runs))
    assert all(run.needs == ("trunk,a",) for run in runs)
    assert all(study.factors(run) | {"stage": "pretraining", "images": 40} == study.factors(run) for run in runs)
    # What a trunk saves: of 20 + 62 + 200 steps, its own 160 and the falls are left.
    left = sum(flops_to_run(run.experiment) for run in (trunk, *runs)) / sum(training_flops(r.experiment) for r in runs)
    assert left == pytest.approx((160 + 4 + 12 + 40) / 282)


def test_runs_of_their_own_are_the_same_runs():
    shared, alone = small_grid()[1:], small_grid(rates="cooldown")
    assert [run.experiment for run in alone] == [dataclasses.replace(run.experiment, branch=None) for run in shared]
    together, apart = Study("s", small_grid()).identities, Study("s", alone).identities
    assert all(together[run.name] == apart[run.name] for run in alone)
    cosine = small_grid(rates="cosine")
    assert [(run.name, run.experiment.steps, run.experiment.optimizer.schedule) for run in cosine] == [
        (run.name, run.experiment.steps, Cosine(3)) for run in alone]


def test_a_run_must_be_longer_than_its_warmup():
    with pytest.raises(UserError, match="a: 20 steps, of which the rate falls in 4; expected more than that and"):
        lengths("a", recipe, (320,), 16, warmup=16)


def sweep(path, rows):
    columns = "run,status,stage,depth,images,images_seen,learning_rate,main_metric,direction,val/top1"
    path.write_text("\n".join([columns, *(f"r{i},done,{row},val/top1,higher,{score}" for i, (row, score) in
                                          enumerate(rows))]))
    return str(path)


def test_the_best_rate_nearby_is_chosen(tmp_path):
    rows = [("pretraining,10,1000,4000,0.1", 0.2), ("pretraining,10,1000,4000,0.3", 0.3),
            ("pretraining,10,1000,4000,0.3", 0.1), ("pretraining,10,1000,4000,0.1", 0.25),  # a second seed
            ("pretraining,10,1000,64000,0.1", 0.5), ("pretraining,10,1000,64000,0.3", 0.6),
            ("pretraining,10,50000,4000,0.1", 0.2), ("pretraining,10,50000,4000,0.3", 0.3),
            ("trunk,10,50000,4000,1.0", 0.9), ("pretraining,18,1000,4000,0.1", 0.9)]
    rates = Rates(sweep(tmp_path / "rates.csv", rows))
    assert rates.best == {(10, 1000.0, 4000.0): 0.1, (10, 1000.0, 64000.0): 0.3, (10, 50000.0, 4000.0): 0.3}
    assert [rates(10, images, 5_000) for images in (500, 1_000, 5_000, 20_000, 100_000)] == [0.1, 0.1, 0.1, 0.3, 0.3]
    assert [rates(10, 500, seen) for seen in (1_000, 15_000, 17_000, 1_000_000)] == [0.1, 0.1, 0.3, 0.3]
    with pytest.raises(UserError, match=r"rates\.csv: no rates for depth 18; it has 10"):
        rates(18, 1_000, 4_000)
    with pytest.raises(UserError, match="no finished runs that differ in learning_rate"):
        Rates(sweep(tmp_path / "one.csv", rows[:1]))
