"""Schedules by hand: the factor at each step of a run, with warm-up and without."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.training.schedules import Constant, Cooldown, Cosine, Poly, Staircase, Step, steps_of

STEPS = 90


def factors(schedule, steps=STEPS):
    """The factor at each step, and ten steps beyond the end."""
    return np.asarray(schedule.build(steps)(jnp.arange(steps + 10, dtype=jnp.int32)))


@pytest.mark.parametrize("warmup", [0, 20, 0.25])
@pytest.mark.parametrize(("schedule", "shape"), [
    (Constant, lambda step, progress: 1.0),
    (Cosine, lambda step, progress: (1 + np.cos(np.pi * progress)) / 2),
    (lambda warmup: Cosine(warmup, final=0.1), lambda step, progress: 0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2),
    (Poly, lambda step, progress: (1 - progress) ** 0.9),
    (lambda warmup: Cooldown(warmup, 0.25), lambda step, progress: min(max((90 - step) / 23, 0), 1)),
    (lambda warmup: Cooldown(warmup, 10), lambda step, progress: min(max((90 - step) / 11, 0), 1)),
    (lambda warmup: Cooldown(warmup, 0), lambda step, progress: float(step < 90)),
    (lambda warmup: Poly(warmup, 2.0, 0.01), lambda step, progress: 0.01 + 0.99 * (1 - progress) ** 2),
    (Step, lambda step, progress: 0.1 ** sum(step >= limit for limit in (30, 60, 80))),
    (lambda warmup: Step(warmup, (0.5,), 0.2), lambda step, progress: 0.2 if step >= 45 else 1.0),
    (lambda warmup: Staircase(warmup, every=40), lambda step, progress: 0.9 ** (step // 40)),
    (lambda warmup: Staircase(warmup, 7, 0.5), lambda step, progress: 0.5 ** (step // 7))])
def test_factors(schedule, shape, warmup):
    rise = {0: 0, 20: 20, 0.25: 22}[warmup]
    expected = []
    for step in range(STEPS + 10):
        progress = min(max((step - rise) / (STEPS - rise), 0.0), 1.0)
        expected.append(min((step + 1) / (rise + 1), 1.0) * shape(step, progress))
    np.testing.assert_allclose(factors(schedule(warmup=warmup)), expected, rtol=1e-5, atol=1e-6)


def test_a_traced_step_needs_no_promotion(strict):
    step = jnp.asarray(50, jnp.int32)
    assert float(Cosine().build(100)(step)) == pytest.approx(0.5)
    assert float(Staircase(every=10).build(100)(step)) == pytest.approx(0.9**5)


def test_the_papers_staircase_is_the_default():
    assert (Staircase().every, Staircase().factor) == (3_000_000, 0.9)
    share = Staircase(every=1 / 12).build(600)
    assert [float(share(step)) for step in (49, 50, 599)] == pytest.approx([1, 0.9, 0.9**11])
    np.testing.assert_allclose([float(Staircase().build(10**7)(step)) for step in (2_999_999, 3_000_000)], [1.0, 0.9])


def test_lengths_are_shares_below_one_and_steps_from_one():
    assert [steps_of(length, 100) for length in (0.29, 0.999, 1, 20.0)] == [29, 99, 1, 20]
    np.testing.assert_allclose(factors(Constant(1), 4)[:3], [0.5, 1.0, 1.0])
    np.testing.assert_allclose(factors(Constant(3), 4)[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert float(Constant().build(0)(0)) == 1.0
    for warmup, steps in ((100, 100), (1, 1), (5, 0)):
        with pytest.raises(UserError, match=f"warmup={warmup} steps; expected fewer than the run's {steps}"):
            Cosine(warmup).build(steps)
    with pytest.raises(UserError, match="Staircase: every=0; expected a share of the run"):
        Staircase(every=0)
    for warmup in (-1, 1.5, -0.5):
        with pytest.raises(UserError, match=f"warmup={warmup}; expected a share of the run below 1 or a whole number"):
            Constant(warmup)
