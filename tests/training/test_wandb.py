"""Weights & Biases gets what metrics.jsonl gets: from the first process only, as one W&B run."""

import json
import sys
import types

import pytest
from processes import CONFIG

from big_vision_lite.cli import main
from big_vision_lite.config import read_json
from big_vision_lite.errors import UserError
from big_vision_lite.training import loop
from big_vision_lite.training.metrics import MetricWriter, read_metrics
from big_vision_lite.training.wandb import WandB


class Fake(types.ModuleType):
    """Records what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.lines, self.finished = [], [], 0

    def init(self, **options):
        self.inits.append(options)
        return self

    def log(self, values, step):
        self.lines.append({"step": step, **values})

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    module = Fake()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def board(workdir, start):
    return WandB("vision", {"steps": 8}, workdir, start)


def test_it_gets_what_the_file_gets(fake, tmp_path):
    for start in (0, 3, 0):
        writer = MetricWriter(tmp_path, start, board=board(tmp_path, start))
        writer.write(start + 1, {"loss": 2.0})
        writer.chart(start + 1, {"checkpoint_seconds": 1.0})
        writer.close()
    assert fake.lines == [line for step in (1, 4, 1) for line in ({"step": step, "loss": 2.0},
                                                                  {"step": step, "checkpoint_seconds": 1.0})]
    first, resumed, anew = fake.inits
    assert first["project"] == "vision" and first["config"] == {"steps": 8} and first["resume"] == "allow"
    assert resumed["id"] == first["id"] != anew["id"] and first["name"] == tmp_path.name
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"project": "vision", "id": anew["id"]}
    assert fake.finished == 3
    MetricWriter(tmp_path, 0, quiet=True).write(1, {"loss": 1.0})  # not the first process
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_run_of_the_command(fake, tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(CONFIG)
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "tiny.py"), "--workdir", str(run), "--steps=2", "--wandb=vision"]) == 0
    lines = read_metrics(run / "metrics.jsonl")
    assert [line for line in fake.lines if "checkpoint_seconds" not in line] == lines and fake.finished == 1
    assert fake.inits[0]["config"] == read_json(run / "config.json")
    monkeypatch.setattr(loop, "is_primary", lambda: False)  # another process of the same run has no board
    assert main(["train", str(tmp_path / "tiny.py"), "--workdir", str(run), "--steps=2", "--wandb=vision"]) == 0
    assert len(fake.inits) == 1


def test_it_is_not_installed_or_does_not_start(fake, tmp_path, monkeypatch):
    def refuse(**options):
        raise RuntimeError("no API key\nmore")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(UserError, match="--wandb vision: no API key; WANDB_MODE=offline"):
        board(tmp_path, 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'big_vision_lite\[wandb\]'"):
        board(tmp_path, 0)
