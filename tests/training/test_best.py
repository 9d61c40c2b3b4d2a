"""The checkpoint of the best evaluation is kept beside the newest, and can be chosen."""

import dataclasses
import json
import random

import pytest
from toy_backbone import Toy
from toy_head import ToyHead

from big_vision_lite import config
from big_vision_lite.cli import main
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment
from big_vision_lite.heads.head import MainMetric
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system.signals import Stopped
from big_vision_lite.training import loop
from big_vision_lite.training.best import MainScore
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.trainer import Trainer

SCORES = (0.5, 0.2, None, 0.9, 0.2, 0.9, 0.4, 0.6)
"""Of steps 1 to 8."""
MODULES = "toy_backbone", "toy_head"

pytestmark = pytest.mark.usefixtures("compile_once")


def experiment(higher: bool, keep_best: bool = True) -> Experiment:
    def view(split):
        return Input(EmojiScenes(split, 8, size=16, classes=4, objects=(1, 2)), Resize(16), 8)

    return Experiment(view("train"), {"first": view("validation"), "second": view("test")}, Toy(),
                      ToyHead("sigmoid", main=MainMetric("rmse", higher)), SGD(0.1), steps=8, eval_every=1,
                      save_every=4, max_checkpoints=1, keep_best=keep_best)


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations give `SCORES`, from the first step of a run on; the second evaluation gives others."""
    def score(self, state, name, *_, **__):
        value = SCORES[int(state.step) - 1]
        return {"rmse": value if name == "first" else -(value or 0.0), "loss": 0.0, "images": 8}

    monkeypatch.setattr(Trainer, "score", score)
    monkeypatch.setattr(Trainer, "draw", lambda self, state, name, path, images=12: path.write_bytes(PNG))


def png() -> bytes:
    import io

    from PIL import Image

    Image.new("RGB", (4, 4)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


PNG = png()


def kept(run) -> list[int]:
    return Checkpoints(run / "checkpoints").steps()


@pytest.mark.parametrize(("higher", "stop", "best"), [(True, None, 4), (True, 3, 4), (False, 5, 2)])
def test_the_best_and_the_newest_are_kept(scripted, tmp_path, monkeypatch, higher, stop, best):
    """Also of a run that was stopped and went on. What a study reads are the last scores."""
    run = tmp_path / "run"
    if stop:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_stop_signal", lambda received, dispatched: 15 if dispatched == stop else None)
            with pytest.raises(Stopped):
                loop.train(experiment(higher), run)
        assert kept(run) == [1 if higher else best, stop]
    results = loop.train(experiment(higher), run)
    assert kept(run) == [best, 8]
    assert [open_run(run, choice, MODULES)[2] for choice in ("best", best, "last")] == [best, best, 8]
    assert json.loads((run / "run.json").read_text())["results"] == results
    assert results["first/rmse"] == SCORES[-1]


def test_a_best_checkpoint_that_is_not_there(scripted, tmp_path, capsys):
    run = tmp_path / "run"
    loop.train(experiment(True, keep_best=False), run)
    assert kept(run) == [8]
    with pytest.raises(UserError, match=r"best first/rmse, 0\.9, at step 4, whose checkpoint was not kept; it has 8:"):
        open_run(run, "best", MODULES)
    without = dataclasses.replace(experiment(True), evals={})
    (run / "config.json").write_text(config.dumps(without))
    with pytest.raises(UserError, match="has no evaluations, so that no checkpoint is the best"):
        open_run(run, "best", MODULES)
    for command in (["evaluate", str(run)], ["predict", str(run), str(run)],
                    ["weights", "export", str(run), "--to=safetensors", f"--out={tmp_path / 'x.safetensors'}"]):
        assert main([*command, "--checkpoint=best", "--import", *MODULES]) == 2
        assert main([*command, "--checkpoint=newest"]) == 2
        assert "--checkpoint 'newest'; expected best, last or the step" in capsys.readouterr().err


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_of_random_scores(higher):
    rng, score = random.Random(5), MainScore("val/x", higher)
    for _ in range(200):
        values = [rng.choice([None, 0.1, 0.2, 0.3, -1.0]) for _ in range(rng.randrange(6))]
        lines = [line for step, value in enumerate(values) for line in ({"step": step, "loss": 1.0},
                                                                        {"step": step, "val/x": value})]
        scored = [(step, value) for step, value in enumerate(values) if value is not None]
        pick = max if higher else min
        assert score.best(lines) == (pick(scored, key=lambda one: one[1]) if scored else None)


def test_keep_best_is_no_other_experiment():
    """A field at its default is not part of an identity, and runs go on when it is changed."""
    assert "keep_best" not in config.identity(experiment(True, keep_best=False))
    resolved = [config.to_json(experiment(True, keep_best)) for keep_best in (False, True)]
    assert config.differences(*resolved) and not config.differences(*resolved, WITHOUT_EFFECT)
