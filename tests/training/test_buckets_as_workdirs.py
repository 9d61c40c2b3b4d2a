"""Runs in a bucket that refuses to append and to rename, without TensorFlow: train, resume, evaluate, start from."""

import contextlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from object_store import serving
from processes import CONFIG, metrics_of

from big_vision_lite.cli import main
from big_vision_lite.errors import UserError
from big_vision_lite.system import paths
from big_vision_lite.system.atomic import replacing
from big_vision_lite.system.paths import RemotePath, as_path, upload
from big_vision_lite.training import metrics
from big_vision_lite.training import workdir as workdirs
from big_vision_lite.training.checkpoints import Checkpoints, Damaged
from big_vision_lite.training.metrics import MetricWriter, read_metrics, read_run
from big_vision_lite.training.workdir import OwnedWorkdir

needs_gcsfs = pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="the extra [gcs] is not installed")
pytestmark = [
    pytest.mark.usefixtures("compile_once"),
    # Orbax abandons reads in progress when another one fails; gcsfs and aiohttp close sessions when they are freed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
STEPS = 8


@pytest.fixture(scope="module")
def store():
    with serving() as store:
        yield store


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def command(config, workdir, *more):
    return ["train", config, "--workdir", str(workdir), f"--steps={STEPS}", "--save-every=4", *more]


@pytest.fixture(scope="module")
def on_disk(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "run"
    assert main(command(config, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def in_bucket(store, config):
    """A run that was trained in the bucket from start to end."""
    assert main(command(config, "gs://bucket/runs/whole")) == 0
    return as_path("gs://bucket/runs/whole")


@needs_gcsfs
def test_a_run_in_a_bucket_is_one_on_a_disk(store, in_bucket, on_disk):
    assert metrics_of(in_bucket) == metrics_of(on_disk)
    run = read_run(in_bucket)
    assert run["step"] == STEPS and run["results"] == read_run(on_disk)["results"]
    names = {name.removeprefix("runs/whole/") for name in store.under("runs/whole/")}
    assert {"config.json", "data.json", "run.json", "metrics.jsonl", "predictions.png"} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert {"checkpoints/4/commit_success.txt", "checkpoints/8/commit_success.txt"} <= names
    assert store.objects["runs/whole/predictions.png"][0].startswith(b"\x89PNG")
    assert not any(verb == "copy" for verb, _ in store.calls)
    assert "tensorflow" not in sys.modules and not Path("gs:").exists()


@needs_gcsfs
def test_it_goes_on_from_its_newest_complete_checkpoint(store, in_bucket, config, capsys):
    for name in store.under("runs/whole/"):
        store.objects[name.replace("whole", "cut")] = store.objects[name]
    del store.objects["runs/cut/checkpoints/8/commit_success.txt"]  # as a process leaves it that dies during a save
    capsys.readouterr()
    assert main(command(config, "gs://bucket/runs/cut")) == 0
    assert "gs://bucket/runs/cut: 40 images" in (out := capsys.readouterr().out) and "going on from step 4" in out
    assert metrics_of(as_path("gs://bucket/runs/cut")) == metrics_of(in_bucket)
    assert Checkpoints(as_path("gs://bucket/runs/cut/checkpoints")).steps() == [4, 8]
    assert main(command(config, "gs://bucket/runs/cut", "--optimizer.learning-rate=0.3")) == 2
    assert "'gs://bucket/runs/cut' holds a run of another experiment: optimizer.lear" in capsys.readouterr().err


@needs_gcsfs
def test_a_damaged_checkpoint_is_set_aside(store, in_bucket, config, capsys):
    for name in store.under("runs/whole/"):
        store.objects[name.replace("whole", "damaged")] = store.objects[name]
    arrays = store.under("runs/damaged/checkpoints/8/state/ocdbt.process_0/d/")
    path = max(arrays, key=lambda name: len(store.objects[name][0]))
    store.objects[path] = flipped(store.objects[path][0]), store.objects[path][1] + 10**6
    assert main(command(config, "gs://bucket/runs/damaged")) == 0
    out, name = capsys.readouterr().out, path.removeprefix("runs/damaged/checkpoints/8/")
    assert f"checkpoint gs://bucket/runs/damaged/checkpoints/8 is damaged: {name} has other contents" in out
    assert "moved to gs://bucket/runs/damaged/damaged/8, going on from step 4" in out
    assert store.under("runs/damaged/damaged/8/state/")
    assert metrics_of(as_path("gs://bucket/runs/damaged")) == metrics_of(in_bucket)


def flipped(data: bytes) -> bytes:
    """With one bit in the middle flipped."""
    return data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:]


@needs_gcsfs
@pytest.mark.parametrize("change", [flipped, lambda data: data[:-1], lambda data: data + b"x", None])
def test_any_object_that_is_damaged(store, in_bucket, change):
    checkpoints = Checkpoints(in_bucket / "checkpoints")
    for path in store.under("runs/whole/checkpoints/8/"):
        content, generation = store.objects.pop(path)
        if change:
            store.objects[path] = change(content), generation + 10**6
        with pytest.raises(Damaged, match=f"8 is damaged: {path.removeprefix('runs/whole/checkpoints/8/')}"):
            checkpoints.verify(8)
        store.objects[path] = content, generation
    checkpoints.verify(8)


@needs_gcsfs
def test_a_copy_on_a_disk_keeps_its_checksums(store, in_bucket, on_disk, tmp_path):
    """And the other way round: both know the same ones."""
    for name in store.under("runs/whole/checkpoints/"):
        path = tmp_path / name.removeprefix("runs/whole/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.objects[name][0])
    upload(on_disk / "checkpoints", as_path("gs://bucket/copied/checkpoints"))
    for copy in (tmp_path, as_path("gs://bucket/copied")):
        checkpoints = Checkpoints(copy / "checkpoints")
        checkpoints.verify(8)
        assert checkpoints.arrays(8).keys() == Checkpoints(on_disk / "checkpoints").arrays(8).keys()


@needs_gcsfs
def test_it_is_scored_and_started_from(store, in_bucket, config, capsys, tmp_path):
    module = json.loads((in_bucket / "config.json").read_text())["backbone"]["class"].partition(":")[0]
    capsys.readouterr()
    assert main(["evaluate", "gs://bucket/runs/whole", "--import", module]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["validation/mAP"] == pytest.approx(read_run(in_bucket)["results"]["validation/mAP"], abs=1e-6)
    assert store.under("runs/whole/evaluations/") == [f"runs/whole/evaluations/validation-8{kind}"
                                                      for kind in ("-details.json", ".json", ".png")]
    assert main(command(config, tmp_path / "next", "--transfer.init=gs://bucket/runs/whole", "--transfer.keep-head",
                        "--steps=1")) == 0
    assert "arrays from gs://bucket/runs/whole" in capsys.readouterr().out
    assert main(["evaluate", "gs://bucket/runs/none"]) == 2
    assert "cannot read gs://bucket/runs/none/config.json: No such file or directory; a run" in capsys.readouterr().err


@needs_gcsfs
def test_a_bucket_that_cannot_be_reached(store, config, capsys):
    store.away = True
    try:
        assert main(command(config, "gs://bucket/runs/away")) == 2
    finally:
        store.away = False
    err = capsys.readouterr().err
    assert "cannot write to the workdir 'gs://bucket/runs/away': " in err and err.count("\n") == 1


@needs_gcsfs
def test_a_bucket_that_is_away_for_a_while(store, monkeypatch):
    """Metrics are written once it is back; before a save, a run waits for it."""
    monkeypatch.setattr(metrics, "UPLOAD_SECONDS", 0)
    monkeypatch.setattr(workdirs, "PATIENCE", 0.3)
    run, notes = as_path("gs://bucket/runs/later"), []
    with OwnedWorkdir(run) as owned, contextlib.closing(MetricWriter(run, 0, confirm=owned.confirm)) as writer:
        (run / "config.json").write_bytes(b"{}")
        writer.write(1, {"loss": 1.0})
        store.away = True
        try:
            writer.write(2, {"loss": 1.0})
            with pytest.raises(UserError, match=r"cannot write the metrics to 'gs://bucket/runs/later': .*; see that"):
                writer.sync()
            with pytest.raises(UserError, match="the workdir 'gs://bucket/runs/later' has been away for 0 s; bring it"):
                owned.wait(notes.append)
        finally:
            store.away = False
        assert notes == ["gs://bucket/runs/later is not there any more; waiting for it"]
        owned.wait(notes.append)
        assert len(read_metrics(run / "metrics.jsonl")) == 1
        writer.write(3, {"loss": 1.0})
        assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]


@needs_gcsfs
def test_paths_of_a_bucket(store, tmp_path):
    folder = as_path(Path("gs://bucket/some where"))
    assert isinstance(folder, RemotePath) and str(folder / "a.txt") == os.fspath(folder / "a.txt")
    assert str(folder.parent / "b") == "gs://bucket/b" and folder.absolute() == folder.resolve() == folder
    assert not folder.exists() and list(folder.glob("*")) == []
    (folder / "a.txt").write_bytes("é".encode())
    (folder / "sub" / "b").write_bytes(b"1")
    assert folder.is_dir() and (folder / "a.txt").is_file() and (folder / "a.txt").read_text() == "é"
    assert [path.name for path in folder.iterdir()] == ["a.txt", "sub"]
    assert list(folder.glob("a*")) == [folder / "a.txt"] and (folder / "a.txt").open().read() == "é"
    for mode in ("a", "w", "r+"):
        with pytest.raises(OSError, match="written as a whole"):
            (folder / "a.txt").open(mode)
    with replacing(folder / "c.bin") as file:
        file.write_bytes(b"22")
        assert not (folder / "c.bin").exists()
    assert (folder / "c.bin").read_bytes() == b"22"
    folder.rename(as_path("gs://bucket/moved"))
    assert not folder.exists() and store.under("moved/") == ["moved/a.txt", "moved/c.bin", "moved/sub/b"]
    as_path("gs://bucket/moved/c.bin").unlink()
    with pytest.raises(FileNotFoundError):
        as_path("gs://bucket/moved/c.bin").read_bytes()

    (tmp_path / "log").write_text("one")
    sizes = {}
    for text in ("one", "one two"):
        (tmp_path / "log").write_text(text)
        upload(tmp_path, folder, sizes)
    upload(tmp_path, folder, sizes)
    assert [call for call in store.calls if call[1] == "some where/log"] == [("put", "some where/log")] * 2
    assert store.text("some where/log") == "one two"


def test_gcsfs_is_not_installed(config, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gcsfs" else find(name, *more))
    paths._store.cache_clear()
    assert main(command(config, "gs://bucket/run")) == 2
    err = capsys.readouterr().err
    assert "pip install 'big_vision_lite[gcs]'" in err and err.count("\n") == 1
    with pytest.raises(UserError, match="gcsfs, which is not installed"):
        as_path("gs://bucket/run")
    assert main(command(config, "s3://bucket/run")) == 2
    assert "expected a folder on a disk, or gs://BUCKET/FOLDER" in capsys.readouterr().err
    monkeypatch.undo()
    paths._store.cache_clear()
