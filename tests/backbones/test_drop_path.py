"""Stochastic depth: what it drops, by which keys, and a run with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from big_vision_lite.backbones.resnet import ResNet, drop_path
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.loop import train
from big_vision_lite.training.metrics import read_metrics
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Constant
from big_vision_lite.training.step import merge, split

pytestmark = pytest.mark.usefixtures("compile_once")
SMALL = dict(depth=10, width=1 / 16, stem="half", zero_last_norm=False)


def keys_of(count, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, (count, 2), np.uint32))


def images_of(count):
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)), jnp.uint8)


def forward(train=True, **fields):
    """The last features of four images, as a function of keys."""
    arrays = split(ResNet(**SMALL, **fields).build(nnx.Rngs(0)))
    return lambda keys: merge(*arrays)(images_of(4), train, keys)[-1]


def run(keys, **fields):
    return np.asarray(jax.jit(forward(**fields))(keys))


def test_images_are_dropped_by_their_own_keys_and_the_expectation_stays(strict):
    x, keys = jnp.ones((4000, 1, 2, 3)), keys_of(4000)
    dropped = np.asarray(drop_path(x, 0.25, keys, 1))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(4 / 3)}
    assert (dropped == dropped[:, :1, :1, :1]).all()
    assert dropped.mean() == pytest.approx(1, abs=0.04)
    np.testing.assert_array_equal(drop_path(x[:10], 0.25, keys[10:20], 1), dropped[10:20])
    other = np.asarray(drop_path(x, 0.25, keys, 2))
    assert np.corrcoef(dropped[:, 0, 0, 0], other[:, 0, 0, 0])[0, 1] < 0.05


def test_rates_grow_linearly_to_the_last_block():
    module = nnx.eval_shape(lambda: ResNet(18, 1 / 16, drop_path=0.4).build(nnx.Rngs(0)))
    rates, numbers = zip(*(dropped for index in range(4) for dropped in module.dropped(index)), strict=True)
    np.testing.assert_allclose(rates, 0.4 * np.arange(1, 9) / 8)
    assert numbers == tuple(range(1, 9))
    with pytest.raises(UserError, match=r"drop_path=1\.0"):
        ResNet(drop_path=1.0)


def test_without_drop_path_and_in_evaluation_keys_change_nothing():
    plain = run(None)
    np.testing.assert_array_equal(run(keys_of(4)), plain)
    np.testing.assert_array_equal(run(keys_of(4), train=False, drop_path=0.5), run(None, train=False))
    assert "random" not in str(jax.make_jaxpr(forward())(keys_of(4)))
    assert "random" in str(jax.make_jaxpr(forward(drop_path=0.5))(keys_of(4)))
    with pytest.raises(UserError, match=r"passes batch\['key'\]"):
        run(None, drop_path=0.5)
    different = run(keys_of(4), drop_path=0.5)
    assert (different != plain).any() and (different != run(keys_of(4, 1), drop_path=0.5)).any()


def test_a_run_depends_on_seed_and_step_alone(tmp_path):
    def losses(name, steps=4, drop_path=0.5):
        source = EmojiScenes("train", 32, size=16, classes=4, objects=(1, 1))
        train(Experiment(Input(source, Resize(16), 8), {}, ResNet(**SMALL, drop_path=drop_path),
                         Classification("softmax"), SGD(0.05, schedule=Constant()), steps=steps, log_every=1),
              tmp_path / name)
        return [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]

    dropped = losses("a")
    assert len(dropped) == 4 and np.isfinite(dropped).all()
    assert losses("shorter", steps=2) == dropped[:2]
    assert losses("without", drop_path=0.0) != dropped
