"""Settings for CPUs: what a run uses, records and takes up again."""

import json

import jax
import jax.numpy as jnp
import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.system import cpu
from big_vision_lite.system.cpu import CpuSettings


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch):
    monkeypatch.setattr(cpu, "_current", None)


def test_options_go_to_tested_compilers_only_and_the_users_flags_win(monkeypatch):
    monkeypatch.setattr(cpu.metadata, "version", lambda name: cpu.TESTED_JAXLIB[0])
    assert cpu.settings() == CpuSettings(cpu.FORMS, cpu.OPTIONS)
    monkeypatch.setenv("XLA_FLAGS", f"--{cpu.YNN_FUSIONS}=LIBRARY_FUSION_TYPE_DOT")
    assert cpu.settings().options == {}
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(cpu.metadata, "version", lambda name: "0.7.2")
    assert cpu.settings().options == {}
    monkeypatch.setenv("BVL_CPU", "plain")
    assert cpu.settings() == CpuSettings("plain", {})
    monkeypatch.setenv("BVL_CPU", "slow")
    with pytest.raises(UserError, match="BVL_CPU=slow; expected fast"):
        cpu.settings()


@pytest.mark.skipif(cpu.metadata.version("jaxlib") not in cpu.TESTED_JAXLIB, reason="another jaxlib")
def test_the_compiler_takes_the_options_and_sums_the_same():
    x = jax.random.normal(jax.random.key(0), (64, 30, 20))
    ours, theirs = (jax.jit(lambda x: x.sum((0, 1)), compiler_options=options)(x) for options in (cpu.OPTIONS, None))
    assert jnp.allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_resumed_run_computes_as_before_or_says_what_it_cannot(monkeypatch):
    monkeypatch.setattr(cpu.metadata, "version", lambda name: cpu.TESTED_JAXLIB[0])
    cpu.use_settings(CpuSettings("plain", {}, 2))
    before = cpu.to_json(cpu.settings(), 2)
    assert before == json.loads(json.dumps(before)) == {"forms": "plain", "options": {}, "devices": 2}
    assert not cpu.uses_fast_forms() and cpu.differences(before, before) is None
    cpu.use_settings(CpuSettings("1999-01", cpu.OPTIONS, 2))
    now = cpu.to_json(cpu.settings(), 2)
    assert now["forms"] == cpu.FORMS
    assert cpu.differences({**now, "forms": "1999-01"}, now) == (
        f"before, this run computed with forms 1999-01, now {cpu.FORMS}")
    monkeypatch.setattr(cpu.metadata, "version", lambda name: "9.9")
    cpu.use_settings(CpuSettings(cpu.FORMS, cpu.OPTIONS, 2))
    assert "options {'xla" in cpu.differences(now, cpu.to_json(cpu.settings(), 2))
    assert "older version" in cpu.differences(None, now)
    monkeypatch.setattr(cpu.metadata, "version", lambda name: cpu.TESTED_JAXLIB[0])
    monkeypatch.setenv("XLA_FLAGS", f"--{cpu.YNN_FUSIONS}=")  # the user's own choices win at a resume too
    cpu.use_settings(CpuSettings(cpu.FORMS, cpu.OPTIONS, 2))
    assert cpu.settings().options == {} and cpu.uses_fast_forms()
    monkeypatch.setenv("BVL_CPU", "plain")
    cpu.use_settings(CpuSettings(cpu.FORMS, cpu.OPTIONS, 2))
    assert cpu.settings() == CpuSettings("plain", {}, 2)
