"""Starting from another run: weight loading, freezing, learning-rate multipliers, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.loop import train
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Constant
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.transfer import Transfer
from big_vision_lite.training.trees import flatten

pytestmark = pytest.mark.usefixtures("compile_once")


def experiment(classes=6, steps=2, depth=10, pixels=None, **fields):
    def inputs(split, images):
        return Input(EmojiScenes(split, images, size=32, classes=classes), Resize(32), 8)

    return Experiment(train=inputs("train", 24), evals={"validation": inputs("validation", 8)},
                      backbone=ResNet(depth, width=1 / 16, norm=BatchNorm(), pixels=pixels or PixelNormalization()),
                      head=Classification(), optimizer=SGD(0.5, weight_decay=0.1), steps=steps, **fields)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a run, and the arrays that its evaluations use: its batch statistics and its moving average."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train(experiment(ema=0.5), folder)
    from big_vision_lite.runs.evaluate import open_run

    arrays = {name: np.asarray(leaf) for name, leaf in flatten(open_run(folder)[1]).items()}
    assert moved({name: arrays[f"params.{name}"] for name in NAMES},
                 {name: arrays[f"ema_params.{name}"] for name in NAMES})
    return str(folder), {name.removeprefix("ema_"): array for name, array in arrays.items()
                         if name.startswith(("ema_params", "batch_stats"))}


NAMES = ("backbone.stem.kernel", "head.kernel")


def moved(before, after):
    """Names whose arrays differ."""
    return {name for name in before if not np.array_equal(np.asarray(before[name]), np.asarray(after[name]))}


def two_steps(transfer, **fields):
    """Arrays before and after two steps of fine-tuning to four classes."""
    trainer = Trainer(experiment(classes=4, transfer=transfer, **fields))
    state = trainer.init()
    before = {name: np.array(leaf) for name, leaf in flatten(state).items()}
    for batch in trainer.batches(trainer.experiment.train, trainer.data, seed=0, stop=2):
        state, _ = trainer.train_step(state, trainer.to_devices(batch))
    return before, flatten(state), trainer


def test_the_backbone_is_loaded_and_the_head_starts_anew(pretrained):
    folder, arrays = pretrained
    before, after, trainer = two_steps(Transfer(folder), ema=0.9)
    for name in arrays:
        if ".backbone." in name:
            np.testing.assert_array_equal(before[name], arrays[name], err_msg=name)
            np.testing.assert_array_equal(before[name.replace("params.", "ema_params.")], arrays[name])
    assert before["params.head.kernel"].shape[1] == 4 and not before["params.head.kernel"].any()
    assert {name for name in after if name.startswith("params")} <= moved(before, after)
    assert "arrays from" in trainer.init_summary
    same = Trainer(experiment(transfer=Transfer(folder, keep_head=True)))
    np.testing.assert_array_equal(same.init().params["head"]["kernel"], arrays["params.head.kernel"])


def test_what_is_frozen_does_not_move(pretrained):
    folder, _ = pretrained
    before, after, _ = two_steps(Transfer(folder, freeze=("backbone",)))
    changed = moved(before, after)
    assert {name for name in changed if not name.startswith("optimizer")} == {"step", "params.head.kernel",
                                                                             "params.head.bias"}
    assert not any("backbone" in name for name in before if name.startswith("optimizer"))  # and has no momentum

    part = Transfer(folder, freeze=("backbone.stem", "backbone.stages.0"))
    before, after, _ = two_steps(part)
    still = {name for name in before if name.startswith(("params", "batch_stats"))} - moved(before, after)
    names = [name for name in before if name.startswith(("params", "batch_stats"))]
    assert still == {name for name in names if ".stem." in name or ".stages.0." in name}


def test_batchnorm_alone_can_be_frozen(pretrained):
    before, after, _ = two_steps(Transfer(pretrained[0], freeze_batchnorm=True))
    changed = moved(before, after)
    assert not any(name.startswith("batch_stats") for name in changed)
    assert {name for name in before if name.startswith("params")} <= changed


def test_multipliers_scale_each_part():
    """The longest name counts, and what is frozen has no state; against a plain optimiser over two steps."""
    def after_two_steps(transform):
        params, rng = jax.tree.map(jnp.asarray, start), np.random.default_rng(1)
        state = transform.init(params)
        for _ in range(2):
            grads = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
            updates, state = transform.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return flatten(params), flatten(state)

    rng = np.random.default_rng(0)
    start = {"backbone": {"stages": {i: rng.normal(size=(3, 2)).astype(np.float32) for i in (3, 30)},
                          "stem": rng.normal(size=(2, 2)).astype(np.float32)}, "head": np.ones((2, 4), np.float32)}
    plain = SGD(0.1, Constant(), weight_decay=0.0).build(10)
    multipliers = {"backbone": 0.5, "backbone.stages.3": 2.0, "head": 0.0}
    expected = {"backbone.stem": 0.5, "backbone.stages.3": 2.0, "backbone.stages.30": 0.5, "head": 0.0}
    before, (after, _) = flatten(start), after_two_steps(plain)
    scaled, _ = after_two_steps(Transfer(lr_multipliers=multipliers).optimizer(plain))
    for name, factor in expected.items():
        np.testing.assert_allclose(scaled[name] - before[name], factor * (after[name] - before[name]), rtol=1e-4,
                                   err_msg=name)
    frozen, state = after_two_steps(Transfer(freeze=("backbone.stages",)).optimizer(plain))
    assert moved(before, frozen) == {"backbone.stem", "head"}
    assert not any("stages" in name for name in state)


@pytest.mark.parametrize(("transfer", "fields", "message"), [
    (Transfer(freeze=("backbon",)), {}, "no parameter is below 'backbon'; did you mean 'backbone'"),
    (Transfer(freeze=("backbone", "head")), {}, "leaves nothing to train"),
    (Transfer(lr_multipliers={"backbone.stage": 0.1}), {}, "no parameter is below 'backbone.stage'"),
    (Transfer("FOLDER"), {"depth": 18}, "is a BatchNorm ResNet of depth 10, .* of depth 18; change the backbone"),
    (Transfer("FOLDE"), {}, r"Transfer.init='.*/ru': no such run folder or weights file; did you mean '.*/run'\?"),
    (Transfer("~no-such-user/run"), {}, "cannot read Transfer.init='~no-such-user/run': Could not determine home"),
    (Transfer("FOLDER"), {"pixels": PixelNormalization((0.0,) * 3)},
     r"was trained on pixels with mean .* set --backbone.pixels"),
    (Transfer("FOLDER", init_step=7), {}, "no checkpoint of step 7; it has"),
    (Transfer("FOLDER", keep_head=True), {}, r"'head.bias' has shape \(6,\), this network needs \(4,\)"),
])
def test_what_is_refused(pretrained, transfer, fields, message):
    if transfer.init in ("FOLDER", "FOLDE"):  # or mistyped
        transfer = dataclasses.replace(transfer, init=pretrained[0].removesuffix("n" * (transfer.init == "FOLDE")))
    with pytest.raises(UserError, match=message):
        Trainer(experiment(classes=4, transfer=transfer, **fields)).init()


def test_a_negative_multiplier_is_refused():
    with pytest.raises(UserError, match="expected factors of at least 0"):
        Transfer(lr_multipliers={"backbone": -1.0})
