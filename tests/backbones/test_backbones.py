"""ResNets: shapes, sizes, and each part against an independent computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from big_vision_lite.backbones import conv
from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.backbones.norm import BatchNorm, GroupNorm, standardize
from big_vision_lite.backbones.pool import max_pool
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.errors import UserError
from big_vision_lite.system import cpu


def built(config: ResNet) -> nnx.Module:
    """As ``config.build``, but compiled as a whole."""
    graphdef = nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))[0]
    return nnx.merge(graphdef, jax.jit(lambda: nnx.split(config.build(nnx.Rngs(0)))[1])())


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# torchvision's counts with a 1000-way head, which adds 2048 * 1000 + 1000.
@pytest.mark.parametrize(("depth", "millions"), [(50, 25.557032), (101, 44.549160), (152, 60.192808)])
def test_parameter_counts_are_torchvisions(depth, millions):
    module = nnx.eval_shape(lambda: ResNet(depth).build(nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert count + 2048 * 1000 + 1000 == round(millions * 1e6)


@pytest.mark.parametrize(("stem", "output_stride", "strides"), [
    ("imagenet", 32, (4, 8, 16, 32)), ("imagenet", 16, (4, 8, 16, 16)), ("imagenet", 8, (4, 8, 8, 8)),
    ("half", 32, (2, 4, 8, 16)), ("small", 32, (1, 2, 4, 8)), ("small", 8, (1, 2, 2, 2))])
@pytest.mark.parametrize("depth", [10, 50])
def test_features_have_the_declared_strides_and_channels(depth, stem, output_stride, strides):
    module = nnx.eval_shape(lambda: ResNet(depth, 0.125, stem=stem, output_stride=output_stride).build(nnx.Rngs(0)))
    assert module.strides == strides
    features = nnx.eval_shape(lambda m, x: m(x, False), module, jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.uint8))
    for feature, stride, channels in zip(features, strides, module.channels, strict=True):
        assert feature.shape == (2, 64 // stride, 96 // stride, channels)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (3, 2, 0), (2, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_max_pooling_and_its_gradient_equal_flaxs(size, stride, padding):
    x = jnp.round(normal(0, 2, 14, 11, 3))  # many equal maxima
    window = dict(window_shape=(size, size), strides=(stride, stride), padding=((padding, padding),) * 2)
    ours, back = jax.vjp(lambda x: max_pool(x, size, stride, padding), x)
    theirs, their_back = jax.vjp(lambda x: nnx.max_pool(x, **window), x)
    np.testing.assert_array_equal(ours, theirs)
    gradient = normal(1, *ours.shape)
    np.testing.assert_allclose(*back(gradient), *their_back(gradient), atol=1e-6)


def test_a_step_in_plain_forms_equals_one_in_the_forms_for_cpus(monkeypatch):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3)), jnp.uint8)
    model = built(ResNet(10, 0.125, norm=BatchNorm(group=2)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def gradient():
        def loss(params):
            features = nnx.merge(graphdef, params, rest, copy=True)(images, True)
            return sum(jnp.cos(feature).sum() for feature in features)

        return jax.jit(jax.grad(loss))(params)

    fast = gradient()
    monkeypatch.setattr(cpu, "_current", cpu.CpuSettings("plain", {}))
    plain = gradient()
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * (1 + float(abs(b).max())))


def test_dilation_computes_what_stride_would_at_the_points_both_have():
    # With stride 1 and dilation 2 in place of stride 2, every second output is that of the strided network.
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)), jnp.uint8)
    run = jax.jit(lambda module: module(images, False)[-1])
    a, b = (run(built(ResNet(10, 0.125, output_stride=s))) for s in (32, 16))
    np.testing.assert_allclose(b[:, ::2, ::2], a, atol=1e-5)


@pytest.mark.parametrize(("side", "size", "stride", "dilation"), [
    (26, 3, 1, 1), (50, 3, 2, 1), (9, 1, 1, 1), (8, 1, 2, 1), (2, 3, 1, 1), (5, 3, 2, 1), (3, 3, 1, 2), (12, 3, 1, 1),
    (20, 7, 2, 1), (9, 3, 3, 1), (7, 1, 3, 1), (3, 3, 2, 1), (9, 3, 2, 2)])
def test_convolution_and_its_gradients_equal_xlas(side, size, stride, dilation):
    pad = dilation * (size // 2)
    form = ((stride, stride), ((pad, pad), (pad, pad)), (dilation, dilation))
    x, kernel = normal(0, 2, side, side + 1, 5), normal(1, size, size, 5, 7)

    def both(f):
        y, back = jax.vjp(lambda x, k: f(x, k, *form), x, kernel)
        return y, *back(jnp.cos(y))

    for ours, theirs in zip(both(conv.conv2d), both(conv.by_xla), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-4)


def test_batchnorm_equals_flax_and_groups_are_batches_of_their_own():
    x = 3.0 + 2.0 * normal(0, 8, 4, 4, 6)
    ours = BatchNorm().build(6, zero=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    theirs = nnx.BatchNorm(6, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(ours(x, True), theirs(x, use_running_average=False), atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], theirs.mean[...], atol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.var[...], atol=1e-5)
    np.testing.assert_allclose(ours(x, False), theirs(x, use_running_average=True), atol=1e-5)

    grouped = BatchNorm(group=2).build(6, zero=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    alone = [BatchNorm().build(6, zero=False, dtype=jnp.float32, rngs=nnx.Rngs(0)) for _ in range(4)]
    np.testing.assert_allclose(grouped(x, True), jnp.concatenate([m(x[2 * i:2 * i + 2], True)
                                                                  for i, m in enumerate(alone)]), atol=1e-5)
    np.testing.assert_allclose(grouped.mean[...], sum(m.mean[...] for m in alone) / 4, atol=1e-6)
    with pytest.raises(UserError, match="8 does not divide into groups of 3"):
        BatchNorm(group=3).build(6, zero=False, dtype=jnp.float32, rngs=nnx.Rngs(0))(x, True)


def test_weight_standardisation_and_pixels(strict):
    kernel = standardize(2.0 + normal(0, 3, 3, 4, 5))
    np.testing.assert_allclose(kernel.mean((0, 1, 2)), 0.0, atol=1e-6)
    np.testing.assert_allclose(kernel.var((0, 1, 2)), 1.0, atol=1e-4)
    extremes = PixelNormalization().normalize(jnp.asarray([[[[0, 255, 51]]]], jnp.uint8))
    np.testing.assert_allclose(extremes[0, 0, 0], [-1.0, 1.0, -0.6], atol=1e-6)


def test_bfloat16_computes_in_it_and_keeps_float32():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)), jnp.uint8)
    run = jax.jit(lambda module: module(images, False)[-1])
    for norm in (BatchNorm(), GroupNorm(groups=4)):
        half, full = (built(ResNet(10, 0.125, norm=norm, stem="half", dtype=d))
                      for d in ("bfloat16", "float32"))
        a, b = run(half), run(full)
        assert a.dtype == jnp.bfloat16 and b.dtype == jnp.float32
        assert float(jnp.abs(a.astype(jnp.float32) - b).mean()) < 0.02 * float(jnp.abs(b).mean())
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(half)))


def test_zero_last_norm_makes_blocks_identities_at_the_start():
    module = ResNet(18, 0.125, stem="small").build(nnx.Rngs(0))
    x = jnp.abs(normal(0, 2, 8, 8, module.channels[0]))
    np.testing.assert_allclose(module.stages[0][1](x, train=True), x, atol=1e-6)


@pytest.mark.parametrize("make", [
    lambda: BatchNorm(group=0), lambda: BatchNorm(momentum=-0.1), lambda: BatchNorm(epsilon=-1.0),
    lambda: GroupNorm(groups=0), lambda: PixelNormalization(std=(1.0, 0.0, 1.0)), lambda: ResNet(50, width=0.0),
    lambda: ResNetV2(50, norm=GroupNorm(-1))])
def test_fields_out_of_range(make):
    with pytest.raises(UserError, match="expected"):
        make()
