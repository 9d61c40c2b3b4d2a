"""Runs whose images live on the devices, several steps per call: the same as step by step."""

import functools
import itertools
import signal

import numpy as np
import pytest
from processes import metrics_of
from toy_backbone import Toy

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.cutout import Cutout
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment, read_experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system.signals import Stopped
from big_vision_lite.training import loop
from big_vision_lite.training.calls import call_starts
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.seeds import train_seeds
from big_vision_lite.training.trees import flatten

pytestmark = pytest.mark.usefixtures("compile_once")

TRANSFORM = RandomCropPadded(16, pad=2, augment=(Cutout(5),))


def experiment(resident=None, **fields) -> Experiment:
    return Experiment(
        Input(EmojiScenes("train", 20, size=16, classes=4), TRANSFORM, 8, resident=resident),
        {"val": Input(EmojiScenes("validation", 10, size=16, classes=4), Resize(16), 8, resident=resident and "host")},
        **{"backbone": Toy(), "head": Classification(mixup=0.2), "optimizer": SGD(0.1), "steps": 23,
           "steps_per_call": 100, "log_every": 5, "eval_every": 12, "save_every": 10, "ema": 0.9} | fields)


def outcome(run):
    """The metrics of a run, and all arrays of its last checkpoint."""
    _, state, _ = open_run(run, allowed=("toy_backbone",))
    return metrics_of(run), {name: np.asarray(leaf) for name, leaf in flatten(state).items()}


def assert_equal(ours, expected, tolerance):
    for line, other in zip(ours[0], expected[0], strict=True):
        assert line.keys() == other.keys()
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=tolerance, err_msg=str(line["step"]))
    assert ours[1].keys() == expected[1].keys()
    for name, leaf in ours[1].items():
        np.testing.assert_allclose(leaf, expected[1][name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_call_starts_end_at_every_boundary():
    for length, start in itertools.product((1, 3, 5, 100), (0, 4, 20)):
        run = experiment(steps_per_call=length, steps=61)
        starts = call_starts(run, start)
        assert starts[0] == start and starts[-1] == 61 and set(np.diff(starts)) <= {1, min(length, 5)}
        assert {step for step in range(start, 61) if step % 5 == 0 or step % 12 == 0 or step % 10 == 0} <= set(starts)
        # where a call starts depends on the step alone, so that a resumed run makes the same calls
        assert all(call_starts(run, step) == starts[i:] for i, step in enumerate(starts))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the experiment with fields changed, and returns its outcome."""
    @functools.cache
    def run(**fields):
        folder = tmp_path_factory.mktemp("run")
        loop.train(experiment(**fields), folder)
        return outcome(folder)

    return run


def test_a_run_on_kept_images_is_the_ordinary_run(run):
    assert_equal(run(resident="host"), run(), 0)
    assert_equal(run(resident="device"), run(), 1e-6)  # another program, which may round otherwise
    assert_equal(run(resident="device"), run(resident="device", steps_per_call=1), 1e-6)


def test_a_stopped_run_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
    fields = {"resident": "device"}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_stop_signal", lambda received, count: signal.SIGTERM if count == 4 else None)
        with pytest.raises(Stopped, match="after step 12"):  # in the middle of a call, were it not for an evaluation
            loop.train(experiment(**fields), tmp_path)
    loop.train(experiment(**fields), tmp_path)
    assert_equal(outcome(tmp_path), run(**fields), 0)


def test_the_first_loss_that_is_not_finite_is_named(tmp_path):
    messages = []
    for resident in (None, "device"):
        with pytest.raises(UserError, match=r"is (nan|inf) at step ") as raised:
            loop.train(experiment(resident, optimizer=SGD(3e9), log_every=10), tmp_path / str(resident))
        messages.append(str(raised.value))
    assert messages[0] == messages[1] and "steps 1 to" in messages[0]


def assert_near(run, own):
    """The first ten lines of metrics are equal to 1e-4, all others have the same steps."""
    lines, expected = metrics_of(run), metrics_of(own)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines[:10], expected[:10], strict=True):
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=1e-4)


def test_seeds_side_by_side_are_runs_of_their_own(tmp_path, monkeypatch):
    """One of three was stopped early, and all of them later, so that the other two lead, and it has to catch up."""
    seeds, together = (3, 0, 7), tmp_path / "together"
    one = {seed: experiment("device", seed=seed, log_every=1) for seed in seeds}
    for stop, start in ((4, lambda: loop.train(one[7], together / "seed7")),
                        (12, lambda: train_seeds(one[3], together, seeds))):
        monkeypatch.setattr(loop, "_stop_signal",
                            lambda received, count, stop=stop: signal.SIGTERM if count == stop else None)
        with pytest.raises(Stopped, match=f"after step {stop}"):
            start()
    monkeypatch.undo()
    results = train_seeds(one[3], together, seeds)
    for seed in seeds:
        run = together / f"seed{seed}"
        loop.train(experiment(seed=seed, log_every=1), tmp_path / str(seed))
        assert_near(run, tmp_path / str(seed))
        assert open_run(run, allowed=("toy_backbone",))[2] == 23
        assert read_experiment(run / "config.json", ("toy_backbone",)) == one[seed]
    assert loop.train(one[7], together / "seed7") == results[7]  # an ordinary run, with nothing left to do


@pytest.mark.slow
def test_seeds_of_a_network_with_batchnorm(tmp_path):
    fields = {"backbone": ResNet(10, 1 / 16, stem="half"), "optimizer": SGD(0.02), "log_every": 1, "steps": 11,
              "eval_every": None}
    train_seeds(experiment("device", **fields), tmp_path / "together", (0, 1))
    for seed in range(2):
        loop.train(experiment(seed=seed, **fields), tmp_path / str(seed))
        assert_near(tmp_path / f"together/seed{seed}", tmp_path / str(seed))


def test_a_seed_that_fails_does_not_end_the_others(tmp_path):
    (tmp_path / "seed1").write_text("a file where its folder would be")
    with pytest.raises(UserError, match=r"^seed 1: .*seed1"):
        train_seeds(experiment("device", steps=4), tmp_path, (1, 2))
    assert metrics_of(tmp_path / "seed2")[-1]["step"] == 4
    for fields, message in (({}, "train.resident=None; set --train.resident=device"),
                            ({"resident": "device", "mesh": Mesh(fsdp=2)}, "fsdp=2")):
        with pytest.raises(UserError, match=message):
            train_seeds(experiment(**fields), tmp_path, (0, 1))
    with pytest.raises(UserError, match="seeds 1, 1; expected different numbers"):
        train_seeds(experiment("device"), tmp_path, (1, 1))
