"""Blocks traced once compute what plain calls of them compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from big_vision_lite.backbones import repeated, resnet, resnet_v2
from big_vision_lite.backbones.norm import GroupNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.training.step import merge, split
from big_vision_lite.training.transfer import Transfer

SMALL = dict(depth=50, width=1 / 8, zero_last_norm=False)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.integers(0, 256, (4, 32, 32, 3)), jnp.uint8)
KEYS = jnp.asarray(RNG.integers(0, 2**32, (4, 2), np.uint32))


def train_and_evaluate(config, freeze):
    """A function of parameters and statistics, to features, gradients and new statistics of training, and features of
    an evaluation; with parameters and statistics for it."""
    model = config.build(nnx.Rngs(0))
    Transfer(freeze=freeze).fix_running_stats(model)
    graphdef, params, stats = split(model)

    def run(params, stats):
        def loss(params):
            model = merge(graphdef, params, stats)
            features = model(IMAGES, True, KEYS)
            return sum(jnp.cos(f).mean() for f in features), (features, split(model)[2])

        return jax.grad(loss, has_aux=True)(params), merge(graphdef, params, stats)(IMAGES, False)

    return run, params, stats


@pytest.mark.parametrize(("config", "freeze"), [
    (ResNet(**SMALL, drop_path=0.5, output_stride=8), ("stages.0", "stages.2.3")),
    (ResNet(**SMALL, norm=GroupNorm(4)), ()), (ResNetV2(50, 1 / 8, norm=GroupNorm(4)), ())])
def test_blocks_traced_once_are_plain_calls(config, freeze, monkeypatch):
    run, *arrays = train_and_evaluate(config, freeze)
    repeated._run.clear_cache()
    traced = []
    for block in (resnet.Block, resnet_v2.PreActivationBlock):
        plain = block.__call__
        monkeypatch.setattr(block, "__call__", lambda *a, plain=plain, **k: traced.append(1) or plain(*a, **k))
    ours = jax.jit(lambda *a: run(*a))(*arrays)
    assert len(traced) <= 2 * 10  # of 2 * 16
    for module in (resnet, resnet_v2):
        monkeypatch.setattr(module, "run_block", lambda block, x, *a, train: block(x, *a, train=train))
    theirs = jax.jit(lambda *a: run(*a))(*arrays)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=jax.tree_util.keystr(path))
    old, new = arrays[1], ours[0][1][1]
    if jax.tree.leaves(old):
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), old, new)["stages"]
        assert not any(jax.tree.leaves((changed[0], changed[2][3])))
        assert all(jax.tree.leaves((changed[1], changed[2][4])))
