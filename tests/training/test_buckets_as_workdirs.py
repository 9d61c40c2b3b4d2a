"""Runs in a bucket that refuses to append and to rename, without TensorFlow: train, resume, evaluate, start from."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from object_store import ObjectStore
from processes import CONFIG, metrics_of

from big_vision_lite.cli import main
from big_vision_lite.errors import UserError
from big_vision_lite.system import paths
from big_vision_lite.system.atomic import replacing
from big_vision_lite.system.paths import RemotePath, as_path, upload
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.metrics import read_run

needs_gcsfs = pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="the extra [gcs] is not installed")
pytestmark = [
    pytest.mark.usefixtures("compile_once"),
    # Orbax abandons reads in progress when another one fails; gcsfs and aiohttp close sessions when they are freed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
STEPS = 8


@pytest.fixture(scope="module")
def store():
    """One for the whole module: the clients look up its address once."""
    import fsspec
    import gcsfs

    def forget():  # clients of other tests, and finally those of this store
        gcsfs.GCSFileSystem.clear_instance_cache()
        paths._store.cache_clear()

    forget()
    server = ObjectStore()
    address = {"STORAGE_EMULATOR_HOST": server.url, "TENSORSTORE_GCS_HTTP_URL": server.url,
               "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in address.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield server
    forget()
    server.shutdown()
    server.server_close()


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
    for name in store.under("runs/damaged/checkpoints/8/state/"):
        if name.endswith("manifest.ocdbt"):
            store.objects[name] = (store.objects[name][0][:9], store.objects[name][1] + 10**6)
    assert main(command(config, "gs://bucket/runs/damaged")) == 0
    assert "moved to gs://bucket/runs/damaged/damaged/8, going on from step 4" in capsys.readouterr().out
    assert store.under("runs/damaged/damaged/8/state/")
    assert metrics_of(as_path("gs://bucket/runs/damaged")) == metrics_of(in_bucket)


@needs_gcsfs
def test_it_is_scored_and_started_from(store, in_bucket, config, capsys, tmp_path):
    module = json.loads((in_bucket / "config.json").read_text())["backbone"]["class"].partition(":")[0]
    capsys.readouterr()
    assert main(["evaluate", "gs://bucket/runs/whole", "--import", module]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["validation/mAP"] == pytest.approx(read_run(in_bucket)["results"]["validation/mAP"], abs=1e-6)
    assert store.under("runs/whole/evaluations/") == [f"runs/whole/evaluations/validation-8.{kind}"
                                                      for kind in ("json", "png")]
    assert main(command(config, tmp_path / "next", "--transfer.init=gs://bucket/runs/whole", "--transfer.keep-head",
                        "--steps=1")) == 0
    assert "arrays from gs://bucket/runs/whole" in capsys.readouterr().out
    assert main(["evaluate", "gs://bucket/runs/none"]) == 2
    assert "cannot read config.json in 'gs://bucket/runs/none'" in capsys.readouterr().err


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
