"""The benchmarks of whole runs measure what they say, by turns, and end."""

import json

import jax
import pytest

from big_vision_lite.bench import saving, starting, together
from big_vision_lite.bench.experiments import Network
from big_vision_lite.cli import main
from big_vision_lite.data.cores import cores
from big_vision_lite.errors import UserError

TINY = Network(depth=10, width=1 / 16, pixels=16, batch_size=8)


def test_a_save_beside_a_bare_copy(tmp_path, capsys):
    flags = [f"--network.{k}={v}" for k, v in (("depth", 10), ("width", 1 / 16), ("pixels", 16), ("batch-size", 8))]
    assert main(["bench", "save", *flags, "--saves=2", "--steps=2", f"--folder={tmp_path}",
                 f"--out={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    said = capsys.readouterr().out
    assert "times the bare copy" in said and "a step, nothing being written" in said
    assert found["ratio"] == pytest.approx(found["blocked"]["median"] / found["copy"]["median"])
    assert found["copy"]["least"] > 0 and found["blocked"]["most"] <= found["written"]["most"]
    cost, step = found["blocked"]["median"] + found["slowed"]["median"], found["step"]["median"]
    assert found["share"] == pytest.approx(cost / (100 * step + cost))
    experiment = TINY.experiment(steps=1, save_every=1)
    assert experiment.train.batch_size == 8 and experiment.keep == 1
    assert found["bytes"] > 2 * 4 * 10_000 and [p.name for p in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.slow
def test_going_on_beside_starting_anew(tmp_path):
    found = starting.bench_resume(starting.Options(TINY, rounds=1, folder=tmp_path, out=tmp_path / "found.json"))
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert found["more"]["median"] == pytest.approx(found["resumed"]["median"] - found["fresh"]["median"])
    assert 0 < found["fresh"]["median"] < 300


@pytest.mark.slow
@pytest.mark.skipif(len(cores()) < 2, reason="two cores are compared with two processes")
def test_two_processes_beside_one(tmp_path):
    found = together.bench_processes(together.Options(TINY, steps=8, log_every=1, rounds=1, folder=tmp_path))
    assert found["ratio"]["median"] == pytest.approx(found["two"]["median"] / found["one"]["median"])
    assert 0 < found["ratio"]["median"] < 100


def test_what_cannot_be_measured(capsys, monkeypatch):
    for wrong in (lambda: saving.bench_save(saving.Options(TINY, saves=0)), lambda: Network(batch_size=0),
                  lambda: starting.bench_resume(starting.Options(TINY, rounds=0)),
                  lambda: together.bench_processes(together.Options(TINY, steps=4))):
        with pytest.raises(UserError, match="expected at least"):
            wrong()
    monkeypatch.setattr(together, "cores", lambda: [0])
    with pytest.raises(UserError, match="two processes are compared on two cores"):
        together.bench_processes(together.Options(TINY))
    assert main(["bench", "saves"]) == 2
    assert "bvl bench saves; expected bvl bench step CONFIG, or one of input, save" in capsys.readouterr().err
    assert jax.device_count() > 0
