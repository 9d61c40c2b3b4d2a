"""Run folders: what they record, and those of another format."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from made_files import jpeg
from processes import CONFIG, train_command

from big_vision_lite.cli import main
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.errors import UserError
from big_vision_lite.training import workdir as workdirs
from big_vision_lite.training.metrics import read_run
from big_vision_lite.training.progress import Display

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the config tiny.py and a run of it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.py").write_text(CONFIG)
    assert main(train_command(folder, "run", "--steps=1")) == 0
    return folder


def test_run_json_has_the_format_and_the_main_metric(folder):
    run = read_run(folder / "run")
    assert run["format"] == 2 and run["main_metric"] == {"name": "mAP", "direction": "higher", "unit": ""}
    assert 0 <= run["results"][f"validation/{run['main_metric']['name']}"] <= 1


@pytest.fixture(params=[{"format": 1}, {}], ids=["format 1", "no format"])
def of_format_1(folder, request):
    """Rewrites a JSON file of the run; all are restored in the end."""
    texts = {}

    def rewrite(name):
        path = folder / "run" / name
        texts[path] = path.read_text()
        values = {key: value for key, value in json.loads(texts[path]).items() if key != "format"}
        path.write_text(json.dumps({**request.param, **values}))

    yield rewrite
    for path, text in texts.items():
        path.write_text(text)


def test_a_run_of_another_format_is_refused(folder, of_format_1, tmp_path, capsys):
    run = str(folder / "run")
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    of_format_1("config.json")
    for command in (train_command(folder, "run", "--steps=1"), ["evaluate", run],
                    ["predict", run, f"{tmp_path}/photo.jpg"], ["probe", run],
                    train_command(folder, "next", f"--transfer.init={run}"),
                    ["weights", "export", run, "--to", "safetensors", "--out", f"{tmp_path}/w.safetensors"],
                    ["report", run, "--out", f"{tmp_path}/report"]):
        assert main(command) == 2, command
        err = capsys.readouterr().err
        assert "config.json has format 1 (before 0.1.0); this version reads 2; train the run anew" in err, command
        assert err.count("\n") == 1
    assert not (tmp_path / "w.safetensors").exists()


def test_a_run_json_of_another_format_is_refused(folder, of_format_1):
    of_format_1("run.json")
    with pytest.raises(UserError, match=r"run\.json has format 1 \(before 0\.1\.0\); this version reads 2"):
        read_run(folder / "run")


def test_an_address_of_no_bucket_is_refused_before_data_are_made(folder, capsys, monkeypatch):
    monkeypatch.setattr(EmojiScenes, "open", lambda self: pytest.fail("data was made"))
    for command in (train_command(folder, "run", "--workdir=s3://bucket/run"),
                    ["weights", "import", f"{folder}/none.npz", "--out", "s3://bucket/run"]):
        assert main(command) == 2
        assert capsys.readouterr().err == "bvl: --workdir s3://...; expected a folder on a disk, or gs://BUCKET/FOLDER\n"


def test_a_signal_while_the_workdir_is_away(folder, capsys, monkeypatch):
    """The first one ends the run, though there is nowhere to save."""
    monkeypatch.setattr(workdirs, "STOP_PATIENCE", 0.5)
    run, away, step = folder / "gone", folder / "away", Display.step

    def rename_at_7(self, now):
        step(self, now)
        if now == 7:
            while not (run / "checkpoints" / "4").exists():
                time.sleep(0.01)
            run.rename(away)
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()

    monkeypatch.setattr(Display, "step", rename_at_7)
    assert main(train_command(folder, "gone", "--steps=8", "--save-every=4")) == 128 + signal.SIGTERM
    out, err = capsys.readouterr()
    assert "is not there any more; waiting for it" in out
    assert err.startswith(f"bvl: stopped by SIGTERM while the workdir '{run}' was away") and err.count("\n") == 1
    shutil.rmtree(run, ignore_errors=True)  # what was written where it should be
    away.rename(run)
    monkeypatch.setattr(Display, "step", step)
    assert main(train_command(folder, "gone", "--steps=8", "--save-every=4")) == 0
    assert "going on from step 4" in capsys.readouterr().out
