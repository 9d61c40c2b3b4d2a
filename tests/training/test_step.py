"""The step against independent references: pmap, one device, numpy."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from big_vision_lite.backbones.norm import BatchNorm, GroupNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.source import SavedDatasetInfo
from big_vision_lite.errors import UserError
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.losses import multi_hot, sigmoid_loss, softmax_loss
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Constant
from big_vision_lite.training.step import TrainStep, merge, split

DATA = SavedDatasetInfo(tuple("abcdefghij"), True, "toy", 64, "")


def train_step(norm, **fields) -> tuple[TrainStep, dict, dict]:
    backbone = ResNet(10, 0.0625, norm=norm, stem="half", zero_last_norm=False)
    head = Classification(max_labels=4)

    def build():
        rngs = nnx.Rngs(0)
        model = head.build(backbone.build(rngs), DATA, rngs)
        # The head starts at zero, which would hide the backbone's gradient.
        model.head.kernel[...] = 0.1 * jax.random.normal(jax.random.key(1), model.head.kernel.shape)
        return model

    graphdef = split(nnx.eval_shape(build))[0]
    params, batch_stats = jax.jit(lambda: split(build())[1:])()
    optimizer = SGD(1.0, schedule=Constant(), weight_decay=0.0).build(100)
    return TrainStep(graphdef, head, optimizer, **fields), params, batch_stats


def batch(n: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 10, (n, 4)).astype(np.int32)
    return {"image": rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8), "mask": rng.random(n) < 0.9,
            "labels": labels}


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, atol=tolerance, rtol=tolerance), a, b)


@pytest.mark.parametrize(("norm", "meshes_of"), [(BatchNorm(), ((1, 1), (8, 1), (8, 2))),
                                                 (BatchNorm(group=4), ((1, 1), (8, 1)))])
def test_eight_devices_compute_what_one_does(norm, meshes_of):
    step, params, batch_stats = train_step(norm)
    results = []
    for devices, fsdp in meshes_of:
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:devices]).reshape(-1, fsdp), meshes.AXES)
        state = step.init(params, batch_stats)
        state = jax.device_put(state, meshes.state_shardings(state, mesh))
        if fsdp > 1:
            assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
        inputs = jax.device_put(batch(), meshes.batch_sharding(mesh))
        results.append(jax.device_get(jax.jit(step.train_step)(state, inputs)))
    # Rate 1, no momentum yet and no decay: the parameters moved by the gradient itself.
    moved = jax.tree.map(lambda before, after: float(np.abs(before - after).max()), params, results[0][0].params)
    assert max(jax.tree.leaves(moved)) > 1e-2
    for other in results[1:]:
        assert_close(results[0], other)


def test_the_step_equals_a_pmap_reference():
    """Each of eight workers normalises its own four images, and gradients are averaged: the scheme of the paper's
    workers, but synchronous. In our step that is BatchNorm(group=4)."""
    ours, params, batch_stats = train_step(BatchNorm(group=4))
    worker, *_ = train_step(BatchNorm())
    inputs = batch() | {"mask": np.ones(32, np.bool_)}

    @partial(jax.pmap, axis_name="workers", in_axes=(None, None, 0))
    def reference(params, batch_stats, shard):
        def loss_of(params):
            model = nnx.merge(worker.graphdef, params, batch_stats, copy=True)
            logits = model(shard["image"], train=True)
            hot = (shard["labels"][:, :, None] == jnp.arange(10)).any(1)
            loss = optax.sigmoid_binary_cross_entropy(logits, hot.astype(jnp.float32)).sum(-1).mean()
            return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        (loss, new_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        return jax.lax.pmean((loss, grads, new_stats), "workers")

    shards = jax.tree.map(lambda x: x.reshape(8, 4, *x.shape[1:]), inputs)
    loss, grads, new_stats = jax.tree.map(lambda x: np.asarray(x[0]), reference(params, batch_stats, shards))
    mesh = meshes.Mesh().build()
    our_grads, our_stats, metrics = jax.jit(ours.gradient)(params, batch_stats, meshes.to_devices(inputs, mesh))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_close(our_grads, grads)
    assert_close(our_stats, new_stats)


def test_accumulation_and_masked_slots_change_nothing():
    step, params, batch_stats = train_step(GroupNorm(groups=4))
    whole = jax.jit(step.gradient)(params, batch_stats, batch())
    accumulated = jax.jit(dataclasses.replace(step, grad_accum_steps=4).gradient)(params, batch_stats, batch())
    assert_close(whole, accumulated)
    unmasked = {k: v[batch()["mask"]] for k, v in batch().items()}
    assert_close(whole, jax.jit(step.gradient)(params, batch_stats, unmasked))


@functools.cache
def averaging():
    """A step with a moving average, its first parameters and statistics, and the step compiled."""
    step, params, batch_stats = train_step(GroupNorm(groups=4), ema=0.75)
    return step, params, batch_stats, jax.jit(step.train_step)


def test_one_image_or_none_is_a_batch():
    step, params, batch_stats, run = averaging()
    losses = jax.jit(step.eval_step)(params, batch_stats, batch(2))["loss"]
    for unmasked in (0, 1):
        state, metrics = run(step.init(params, batch_stats), batch(2) | {"mask": np.arange(2) < unmasked})
        np.testing.assert_allclose(metrics["loss"], losses[0] * unmasked, rtol=1e-5)
        moved = jax.tree.map(lambda before, after: ((after - before) ** 2).sum(), params, state.params)
        norm = np.sqrt(sum(map(float, jax.tree.leaves(moved))))  # at rate 1, the gradient's
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
        assert (norm > 0) == unmasked


def test_evaluation_and_features_use_the_last_stage_in_inference_mode():
    step, params, batch_stats = train_step(BatchNorm())
    images = jnp.asarray(batch(4)["image"])

    @jax.jit
    def run(params, batch_stats):
        last = merge(step.graphdef, params, batch_stats).backbone(images, train=False)[-1]
        outputs = step.eval_step(params, batch_stats, {"image": images, "labels": jnp.asarray(batch(4)["labels"])})
        return last, step.features(params, batch_stats, images), outputs["logits"]

    last, features, logits = run(params, batch_stats)
    np.testing.assert_allclose(features, last.mean((1, 2)), rtol=1e-5, atol=1e-6)
    head = params["head"]
    np.testing.assert_allclose(logits, features @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


def test_the_moving_average_follows_the_parameters():
    step, params, batch_stats, run = averaging()
    state, _ = run(step.init(params, batch_stats), batch(2) | {"mask": np.ones(2, bool)})
    assert_close(state.ema_params, jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, params, state.params))
    assert state.eval_params is state.ema_params and int(state.step) == 1


def test_losses_against_numpy(strict):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32), np.asarray(
        [[0, 2], [4, -1], [-1, -1], [3, 3], [1, 0], [2, -1]], np.int32)
    hot = np.zeros((6, 5), np.float32)
    for row, ids in enumerate(labels):
        hot[row, ids[ids >= 0]] = 1
    np.testing.assert_array_equal(multi_hot(jnp.asarray(labels), 5), hot)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(hot * np.log(p) + (1 - hot) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(sigmoid_loss(jnp.asarray(logits), jnp.asarray(hot)), expected, rtol=1e-5)
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = hot / np.maximum(hot.sum(1, keepdims=True), 1) * 0.9 + 0.02 * (hot.sum(1, keepdims=True) > 0)
    np.testing.assert_allclose(softmax_loss(jnp.asarray(logits), jnp.asarray(hot), 0.1),
                               -(target * log_q).sum(1), rtol=1e-5, atol=1e-6)


def test_the_head_starts_at_the_prior():
    rngs = nnx.Rngs(0)
    model = Classification(prior=0.02).build(ResNet(10, 0.0625).build(rngs), DATA, rngs)
    logits = model(jnp.zeros((2, 32, 32, 3), jnp.uint8), train=False)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), 0.02, rtol=1e-4)


def test_batches_must_divide_over_devices():
    mesh = meshes.Mesh().build()
    with pytest.raises(UserError, match="batch_size=12 does not divide over 8 devices; the nearest that does is 16"):
        meshes.check_batch("train", 12, mesh)
    with pytest.raises(UserError, match="must be the number of devices"):
        meshes.Mesh(fsdp=3).build()
