"""The benchmarks of whole runs measure what they say, interleaved, and end."""

import json
import subprocess
import sys
from pathlib import Path

import checkpoints
import experiments
import first_step
import pytest
import saving
import startup
from experiments import Network

from big_vision_lite.errors import UserError

TINY = Network(depth=10, width=1 / 16, pixels=16, batch_size=8)


def test_a_save_against_a_plain_copy(tmp_path, capsys, monkeypatch):
    flags = [f"--network.{k}={v}" for k, v in (("depth", 10), ("width", 1 / 16), ("pixels", 16), ("batch-size", 8))]
    out = tmp_path / "saving.json"
    monkeypatch.setattr(sys, "argv", ["saving.py", *flags, "--saves=2", "--steps=2", f"--folder={tmp_path}",
                                      f"--out={out}"])
    experiments.main(saving.benchmark, saving.Options)
    measured, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert "times the plain copy" in printed and "a step while nothing is written" in printed
    assert measured["ratio"] == pytest.approx(measured["blocked"]["median"] / measured["copy"]["median"])
    assert measured["copy"]["least"] > 0 and measured["blocked"]["most"] <= measured["written"]["most"]
    cost, step = measured["blocked"]["median"] + measured["slowdown"]["median"], measured["step"]["median"]
    assert measured["share"] == pytest.approx(cost / (100 * step + cost))
    experiment = TINY.experiment(steps=1)
    assert experiment.train.batch_size == 8 and experiment.max_checkpoints == 1
    assert measured["bytes"] > 2 * 4 * 10_000 and [p.name for p in tmp_path.iterdir()] == ["saving.json"]


def test_checksums_against_none(tmp_path, capsys):
    measured = checkpoints.benchmark(checkpoints.Options((10,), 1 / 16, rounds=2, folder=tmp_path))["10"]
    for name in ("held", "written", "restored"):
        assert measured[name]["ratio"] == pytest.approx(
            measured[name]["with"]["median"] / measured[name]["without"]["median"])
    assert 0 < measured["after"]["median"] < measured["written"]["with"]["median"] and 0 < measured["share"] < 1
    assert "share of the time until it is written" in capsys.readouterr().out and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_resuming_against_starting(tmp_path):
    options = startup.Options(TINY, rounds=1, folder=tmp_path, out=tmp_path / "startup.json")
    measured = startup.benchmark(options)
    assert measured == json.loads((tmp_path / "startup.json").read_text())
    assert measured["difference"]["median"] == pytest.approx(
        measured["resumed"]["median"] - measured["fresh"]["median"])
    assert 0 < measured["fresh"]["median"] < 300


@pytest.mark.slow
def test_the_first_step_cold_and_cached(tmp_path):
    detection = Network(depth=10, width=1 / 16, pixels=64, batch_size=8, task="detection")
    measured = first_step.benchmark(first_step.Options(TINY, detection, folder=tmp_path))
    for costs in measured.values():
        assert 0 < costs["cached CPU"]["median"] < costs["cold CPU"]["median"]


def test_what_cannot_be_measured(monkeypatch):
    for wrong in (lambda: saving.benchmark(saving.Options(TINY, saves=0)), lambda: Network(batch_size=0),
                  lambda: startup.benchmark(startup.Options(TINY, rounds=0)),
                  lambda: first_step.benchmark(first_step.Options(rounds=0)),
                  lambda: checkpoints.benchmark(checkpoints.Options(rounds=0))):
        with pytest.raises(UserError, match="expected at least"):
            wrong()
    monkeypatch.setattr(sys, "argv", ["startup.py", "--rounds=0"])
    with pytest.raises(SystemExit, match=r"^startup\.py: rounds=0; expected at least one$"):
        experiments.main(startup.benchmark, startup.Options)


@pytest.mark.parametrize("name", ["input", "saving", "checkpoints", "startup", "first_step", "classification_step",
                                  "detection_step", "baselines"])
def test_scripts_have_help(name):
    script = Path(experiments.__file__).with_name(f"{name}.py")
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
