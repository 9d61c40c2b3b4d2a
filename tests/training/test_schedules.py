"""Schedules at known steps."""

import pytest

from big_vision_lite.training.schedules import Poly


def test_poly_schedule():
    factor = Poly(warmup=2, final=0.01).build(102)
    assert float(factor(0)) == pytest.approx(1 / 3)
    assert float(factor(52)) == pytest.approx(0.01 + 0.99 * 0.5**0.9)
    assert float(factor(102)) == pytest.approx(0.01)
