"""What a run writes is read back whole, or refused in one line."""

import contextlib
import dataclasses
import itertools
import json
import math
import resource
import struct

import numpy as np
import pytest
from small_studies import small_experiment
from tensorboardX.proto.event_pb2 import Event, SessionLog

from big_vision_lite.errors import UserError
from big_vision_lite.training import metrics
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.loop import train
from big_vision_lite.training.metrics import MetricWriter, last_results, read_metrics, read_run
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.workdir import read_dataset_info

RUN = {"format": 2, "step": 4, "wall_seconds": 2, "devices": ["cpu", 1], "note": [1], "results": {"val/top1": None},
       "main_metric": {"name": "top1", "direction": "higher", "unit": ""}, "versions": {"jax": "1"}}
DATA = {"classes": ["a", "b"], "multi_label": False, "fingerprint": "f", "images": 3, "sha256": "0", "labels": 3}
DAMAGE = {"empty": b"", "cut": b'{"step": 4, ', "binary": b"\xff\xd8\x00\x01", "a list": b"[1]", "a number": b"4",
          "deep": b"[" * 10**5, "not finite": b'{"format": 2, "wall_seconds": Infinity}', "zeros": bytes(64)}


def test_metrics_come_back_as_they_were(tmp_path):
    lines = [{"step": 1, "loss": 0.5, "learning_rate": 1e-05}, {"step": 2, "val/AP": None, "val/images": 3}]
    writer = MetricWriter(tmp_path, 0)
    for line in lines:
        writer.write(line["step"], {name: value for name, value in line.items() if name != "step"})
    writer.write(3, {"loss": math.nan, "grad_norm": math.inf})
    writer.close()
    lines.append({"step": 3, "loss": None, "grad_norm": None})
    assert read_metrics(tmp_path / "metrics.jsonl") == lines
    assert last_results(tmp_path) == {"val/AP": None, "val/images": 3}
    assert [type(line["step"]) for line in lines] == [int] * 3
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():  # by the letter of the standard
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_tensorboard_gets_the_metrics_too(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "FLUSH_SECONDS", 0)
    writer = MetricWriter(tmp_path, 2)
    writer.write(3, {"loss": 0.5, "grad_norm": math.nan})
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []  # before the end: a run may be watched
    while data:
        size, = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12:12 + size]))
        data = data[16 + size:]
    writer.close()
    version, resumed, loss = events
    assert version.file_version == "brain.Event:2"
    assert (resumed.step, resumed.session_log.status) == (3, SessionLog.START)  # hides what was written for step 3
    assert [(loss.step, value.tag, value.simple_value) for value in loss.summary.value] == [(3, "loss", 0.5)]


@pytest.mark.parametrize("method", ["write", "chart"])
def test_a_disk_that_is_full_ends_a_run_in_one_line(tmp_path, method):
    """chart: in TensorBoard's file, behind which a run once waited for ever."""
    writer = MetricWriter(tmp_path, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # beyond it writes fail, as on a full disk
    try:
        with pytest.raises(UserError, match=f"^cannot write metrics to '{tmp_path}': .*; see that there is space"):
            for step in range(1, 1000):
                getattr(writer, method)(step, {"loss": 1.0})
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, step if method == "write" else 1))


@pytest.mark.parametrize("damage", [*DAMAGE.values(), b'{"loss": 1}', b'{"step": "4"}', b'{"step": 4, "loss": "x"}',
                                    b'{"step": 4, "loss": [1]}', b'{"step": true}'])
def test_a_damaged_line_of_metrics(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    sound = b'{"step": 1, "loss": 2.0}\n'
    path.write_bytes(sound + damage)
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]  # as a crash leaves it
    path.write_bytes(sound + damage + b"\n" + sound)
    if damage:
        with pytest.raises(UserError, match=r"cannot read line 2 of .*metrics.jsonl: .*; remove it") as error:
            read_metrics(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(("name", "read"), [("run.json", read_run), ("data.json", read_dataset_info)])
def test_a_damaged_file_of_a_run(tmp_path, name, read, text):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=rf"cannot read .*{name}: .+; .+") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "read", "sound", "changes"), [
    ("run.json", read_run, RUN, {"step": 1.5, "wall_seconds": "2", "devices": ["cpu"], "results": [1],
                                 "main_metric": {"name": "top1"}, "versions": {"jax": 1}, "bad_images": None}),
    ("data.json", read_dataset_info, DATA, {"classes": "ab", "multi_label": "no", "images": "3", "fingerprint": None}),
])
def test_a_value_of_another_type_in_a_file_of_a_run(tmp_path, name, read, sound, changes):
    (tmp_path / name).write_text(json.dumps(sound))
    read(tmp_path)
    for field, value in changes.items():
        (tmp_path / name).write_text(json.dumps({**sound, field: value}))
        with pytest.raises(UserError, match=rf"cannot read .*{name}: .* - at `\$\.{field}"):
            read(tmp_path)


def test_files_of_a_run_that_are_sound_or_absent(tmp_path):
    assert read_run(tmp_path) == {}
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    assert read_run(tmp_path) == RUN  # with what nobody reads
    with pytest.raises(UserError, match=r"data.json: No such file or directory; a run folder holds one"):
        read_dataset_info(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    info = read_dataset_info(tmp_path)
    assert (info.classes, len(info), info.multi_label) == (("a", "b"), 3, False)


@pytest.mark.usefixtures("compile_once")
def test_the_logged_rate_is_that_of_the_step(tmp_path):
    """Without momentum and decay, a step moves the parameters by its rate times its gradient."""
    optimizer = SGD(0.3, schedule=Cosine(warmup=2), weight_decay=0.0, momentum=0.0)
    experiment = dataclasses.replace(small_experiment(steps=3), evals={}, optimizer=optimizer, save_every=1,
                                     max_checkpoints=3)
    train(experiment, tmp_path)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        params = [{name: array for name, array in checkpoints.arrays(step).items() if name.startswith("params.")}
                  for step in range(1, 4)]
    moved = [math.sqrt(sum(np.sum((after[name] - before[name])**2, dtype=np.float64) for name in after))
             for before, after in itertools.pairwise(params)]
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    rates = [line["learning_rate"] for line in lines]
    np.testing.assert_allclose(moved, [line["learning_rate"] * line["grad_norm"] for line in lines[1:]], rtol=1e-3)
    assert rates == pytest.approx([0.1, 0.2, 0.3])
