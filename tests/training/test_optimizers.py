"""Optimisers against their definitions in numpy, over steps whose rate decays and whose gradients differ in size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.training.optimizers import LARS, SGD, AdamW, Optimizer, RMSProp
from big_vision_lite.training.schedules import Constant, Staircase

STEPS = 20
START = {"kernel": np.random.default_rng(0).normal(size=(3, 2)), "bias": np.random.default_rng(1).normal(size=2)}


def gradients() -> list[dict[str, np.ndarray]]:
    """Of norms from about 0.1 to 10."""
    rng = np.random.default_rng(2)
    return [{name: rng.normal(size=x.shape) * 10 ** rng.uniform(-1.5, 0.5) for name, x in START.items()}
            for _ in range(STEPS)]


def sgd(grad, state, momentum=0.9, nesterov=False):
    """What the rate multiplies, and the new state."""
    trace = momentum * state.get("trace", 0.0) + grad
    return (grad + momentum * trace if nesterov else trace), {"trace": trace}


def adam(grad, state, b1=0.9, b2=0.999, epsilon=1e-8):
    step, mean, square = state.get("step", 0) + 1, state.get("mean", 0.0), state.get("square", 0.0)
    mean, square = b1 * mean + (1 - b1) * grad, b2 * square + (1 - b2) * grad**2
    direction = mean / (1 - b1**step) / (np.sqrt(square / (1 - b2**step)) + epsilon)
    return direction, {"step": step, "mean": mean, "square": square}


def rmsprop(grad, rate, state, momentum=0.9, decay_rate=0.9, epsilon=1e-3):
    """The move itself: tf.raw_ops.ApplyRMSProp's ``mom``."""
    square = decay_rate * state.get("square", 1.0) + (1 - decay_rate) * grad**2
    trace = momentum * state.get("trace", 0.0) + rate * grad / np.sqrt(square + epsilon)
    return trace, {"square": square, "trace": trace}


def lars(grad, param, rate, state, momentum=0.9, trust_coefficient=0.001):
    """The move itself (You et al. 2017, algorithm 1), as optax has it: the rate of a step scales what it adds."""
    if param.ndim > 1:
        grad = grad * trust_coefficient * np.linalg.norm(param) / np.linalg.norm(grad)
    trace = momentum * state.get("trace", 0.0) + rate * grad
    return trace, {"trace": trace}


def reference(optimizer: Optimizer, rate_of, fields: dict) -> dict[str, np.ndarray]:
    """Parameters after all steps, in float64."""
    params, states = dict(START), {name: {} for name in START}
    for step, grads in enumerate(gradients()):
        if optimizer.grad_clip_norm is not None:
            norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
            grads = {name: grad * min(1.0, optimizer.grad_clip_norm / norm) for name, grad in grads.items()}
        for name, grad in grads.items():
            decays = name == "kernel" or optimizer.decay_mask == "all"
            decay = optimizer.weight_decay * params[name] if decays else 0.0
            if isinstance(optimizer, AdamW):
                direction, states[name] = adam(grad, states[name], **fields)
                move = rate_of(step) * (direction + decay)
            elif isinstance(optimizer, RMSProp):
                move, states[name] = rmsprop(grad + decay, rate_of(step), states[name], **fields)
            elif isinstance(optimizer, LARS):
                move, states[name] = lars(grad + decay, params[name], rate_of(step), states[name], **fields)
            else:
                direction, states[name] = sgd(grad + decay, states[name], **fields)
                move = rate_of(step) * direction
            params[name] = params[name] - move
    return params


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("kind", "fields"), [
    (SGD, {}), (SGD, {"momentum": 0.5}), (SGD, {"nesterov": True}),
    (RMSProp, {}), (RMSProp, {"momentum": 0.5, "decay_rate": 0.7, "epsilon": 0.1}),
    (LARS, {}), (LARS, {"momentum": 0.5, "trust_coefficient": 0.1}),
    (AdamW, {}), (AdamW, {"b1": 0.5, "b2": 0.9, "epsilon": 0.1})], ids=str)
def test_optimisers_follow_their_definitions(kind, fields, clip):
    optimizer = kind(0.1, Staircase(every=4, factor=0.5), 0.01, "all" if fields else "kernels", clip, **fields)
    transform = optimizer.build(STEPS)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)
    state = transform.init(params)
    for grads in gradients():
        updates, state = transform.update(jax.tree.map(jnp.float32, grads), state, params)
        params = optax.apply_updates(params, updates)
    expected = reference(optimizer, lambda step: 0.1 * 0.5 ** (step // 4), fields)
    for name in START:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_defaults():
    """A change here changes what configs train that leave these out."""
    defaults = [(kind.learning_rate, kind.weight_decay, kind.decay_mask, kind.grad_clip_norm)
                for kind in (SGD(), RMSProp(), AdamW(), LARS())]
    assert defaults == [*((rate, 1e-4, "kernels", None) for rate in (0.1, 0.1, 1e-3)), (0.3, 1e-6, "kernels", None)]


@pytest.mark.parametrize("fields", [{"learning_rate": 0.0}, {"weight_decay": -1e-9}, {"grad_clip_norm": 0.0}])
def test_values_out_of_range(fields):
    with pytest.raises(UserError, match="expected learning_rate and grad_clip_norm above 0 and weight_decay of"):
        SGD(**fields)
    SGD(1e-9, Constant(), 0.0, grad_clip_norm=1e-9).build(10)
