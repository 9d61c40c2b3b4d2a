"""Branches of a trunk: each ends as a run of its own with the same number of steps."""

import dataclasses

import numpy as np
import pytest
from processes import metrics_of
from toy_backbone import Toy

from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.training import loop
from big_vision_lite.training.optimizers import SGD, AdamW
from big_vision_lite.training.schedules import Constant, Cooldown, Cosine
from big_vision_lite.training.transfer import Branch
from big_vision_lite.training.trees import flatten

pytestmark = pytest.mark.usefixtures("compile_once")


def of_length(steps, cooldown, **fields) -> Experiment:
    """A run whose rate rises over 3 steps and falls over the last ``cooldown``."""
    return Experiment(
        Input(EmojiScenes("train", 20, size=16, classes=4), RandomCropPadded(16, pad=2), 8,
              resident=fields.pop("resident", None)),
        {"val": Input(EmojiScenes("validation", 10, size=16, classes=4), Resize(16), 8)},
        **{"backbone": Toy(), "head": Classification(mixup=0.2), "steps": steps, "ema": 0.9, "log_every": 1,
           "optimizer": AdamW(0.01, schedule=Cooldown(3, length=cooldown)), "save_every": 100} | fields)


def outcome(run):
    _, state, _ = open_run(run, allowed=("toy_backbone",))
    return metrics_of(run), {name: np.asarray(leaf) for name, leaf in flatten(state).items()}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk")
    loop.train(of_length(40, 0, keep=(7, 20), max_checkpoints=1), folder)
    return folder


@pytest.mark.parametrize(("at", "steps"), [(7, 9), (20, 25)])
def test_a_branch_ends_as_a_run_of_its_own(trunk, tmp_path, at, steps):
    assert sorted(path.name for path in (trunk / "checkpoints").glob("[0-9]*")) == ["20", "40", "7"]
    own = of_length(steps, steps - at)
    loop.train(own, tmp_path / "own")
    loop.train(dataclasses.replace(own, branch=Branch(str(trunk), at)), tmp_path / "branch")
    (own_metrics, own_state), (metrics, state) = outcome(tmp_path / "own"), outcome(tmp_path / "branch")
    assert metrics == own_metrics[at:]
    assert state.keys() == own_state.keys()
    for name, leaf in state.items():
        np.testing.assert_array_equal(leaf, own_state[name], err_msg=name)


def test_a_branch_within_calls_of_several_steps(tmp_path):
    loop.train(of_length(40, 0, keep=(7,), resident="device", steps_per_call=10, log_every=10), tmp_path / "trunk")
    own = of_length(20, 13, resident="device", steps_per_call=10, log_every=10)
    loop.train(own, tmp_path / "own")
    loop.train(dataclasses.replace(own, branch=Branch(str(tmp_path / "trunk"), 7)), tmp_path / "branch")
    own_state, state = outcome(tmp_path / "own")[1], outcome(tmp_path / "branch")[1]
    for name, leaf in state.items():
        np.testing.assert_allclose(leaf, own_state[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("changes", "message"), [
    ({"at": 8}, "has no checkpoint of step 8; it has 7, 20, 40"),
    ({"at": 20, "cooldown": 6}, "peak rate at step 19, this run 0.857143; expected equal rates up to step 20"),
    ({"optimizer": AdamW(0.02, schedule=Cooldown(3, length=5))}, "another recipe: optimizer.learning_rate"),
    ({"optimizer": AdamW(0.01, schedule=Cosine(3))}, "peak rate at step 4, this run .* let the rate fall after it"),
    ({"optimizer": SGD(0.01, schedule=Constant(3))}, "another recipe: optimizer"),
    ({"seed": 1}, "another recipe: seed: 0 -> 1")])
def test_a_trunk_must_be_of_the_same_recipe(trunk, tmp_path, changes, message):
    at, cooldown = changes.pop("at", 20), changes.pop("cooldown", 5)
    with pytest.raises(UserError, match=message):
        loop.train(of_length(25, cooldown, branch=Branch(str(trunk), at), **changes), tmp_path / "run")


def test_impossible_branches():
    for fields, message in (({"branch": Branch("runs/x", 25)}, "branch.step=25; expected fewer than the run's 25"),
                            ({"keep": (26,)}, r"keep=\(26,\); expected steps from 1 to 25")):
        with pytest.raises(UserError, match=message):
            of_length(25, 5, **fields)
    with pytest.raises(UserError, match="Branch: step=0; expected at least 1"):
        Branch("runs/x", 0)
