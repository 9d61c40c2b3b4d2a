"""What a run survives; each fault is really caused. The table is in docs/faults.md."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from processes import CONFIG, exit_codes, metrics_of, output, start, wait_for_step
from slow_crop import SlowCrop

from big_vision_lite import config as configs
from big_vision_lite.cli import main
from big_vision_lite.training import trainer
from big_vision_lite.training import workdir as workdirs
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.distributed import TRY_AGAIN
from big_vision_lite.training.loop import train
from big_vision_lite.training.metrics import read_metrics, read_run
from big_vision_lite.training.progress import Display
from big_vision_lite.training.watchdog import Watchdog

pytestmark = [
    pytest.mark.usefixtures("compile_once"),
    # Orbax abandons reads in progress when another one fails.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    (path / "tiny.py").write_text(CONFIG)
    return path


@pytest.fixture
def command(folder, tmp_path):
    """A run of a few steps in a folder of its own, saved at 4 and 8."""
    return lambda *more: ["train", str(folder / "tiny.py"), "--workdir", str(tmp_path / "run"), f"--steps={STEPS}",
                          "--save-every=4", *more]


@pytest.fixture(scope="module")
def untouched(folder):
    """A run that nothing happens to."""
    run = folder / "untouched"
    assert main(["train", str(folder / "tiny.py"), "--workdir", str(run), f"--steps={STEPS}", "--save-every=4"]) == 0
    return run


@pytest.fixture
def at_step(monkeypatch):
    """Do something right after a step."""
    def arrange(step, action):
        original = Display.step

        def hooked(self, now):
            original(self, now)
            if now == step:
                action()

        monkeypatch.setattr(Display, "step", hooked)

    return arrange


def damage(checkpoint, what, how):
    """Change the largest file of a checkpoint that a pattern matches. Returns its path in it."""
    path = max(checkpoint.glob(what), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    elif how == "zero":
        page = len(data) // 2 // 4096 * 4096
        data[page:page + 4096] = bytes(len(data[page:page + 4096]))
    else:
        del data[len(data) // 2:]
    path.write_bytes(data)
    if how == "remove":
        path.unlink()
    return str(path.relative_to(checkpoint))


@pytest.mark.parametrize(("what", "how"), [
    ("state/ocdbt.process_0/d/*", "flip"), ("state/ocdbt.process_0/d/*", "zero"), ("state/manifest.ocdbt", "cut"),
    ("data/metadata", "remove"), ("_CHECKPOINT_METADATA", "cut"), ("commit_success.txt", "flip")])
def test_a_newest_checkpoint_that_is_damaged(untouched, tmp_path, command, capsys, what, how):
    run = tmp_path / "run"
    shutil.copytree(untouched, run)
    name = damage(run / "checkpoints" / "8", what, how)
    capsys.readouterr()
    assert main(command()) == 0
    out = capsys.readouterr().out
    assert f"checkpoints/8 is damaged: {name}" in out and out.count(name) == 1
    assert "damaged/8, going on from step 4" in out and (run / "damaged" / "8").is_dir()
    checkpoints = Checkpoints(run / "checkpoints")
    assert metrics_of(run) == metrics_of(untouched) and checkpoints.steps() == [4, 8]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.arrays(), Checkpoints(untouched / "checkpoints").arrays())


def test_commands_that_only_read_a_damaged_checkpoint(untouched, folder, tmp_path, command, capsys):
    run = tmp_path / "source"
    shutil.copytree(untouched, run)
    name = damage(run / "checkpoints" / "8", "state/ocdbt.process_0/d/*", "flip")
    module = json.loads((run / "config.json").read_text())["backbone"]["class"].partition(":")[0]
    picture, reads = str(run / "predictions.png"), ("--import", module)
    before = sorted(run.rglob("*"))
    for arguments in (["evaluate", str(run), *reads], ["predict", str(run), picture, *reads],
                      ["weights", "export", str(run), "--to=safetensors", f"--out={tmp_path}/a.safetensors", *reads],
                      ["probe", str(run), f"--train={folder}/tiny.py", f"--test={folder}/tiny.py", *reads],
                      command(f"--transfer.init={run}", "--transfer.keep-head")):
        capsys.readouterr()
        assert main(arguments) == 2, arguments
        err = capsys.readouterr().err
        assert f"checkpoints/8 is damaged: {name} has other contents than were saved; step 4 is sound" in err
        assert err.count("\n") == 1
    assert sorted(run.rglob("*")) == before  # they change nothing, and take no other step unasked
    assert main(["evaluate", str(run), "--checkpoint=4", *reads]) == 0
    damage(run / "checkpoints" / "4", "data/metadata", "cut")
    assert main(["evaluate", str(run), *reads]) == 2
    assert "no other one is sound" in capsys.readouterr().err


def test_no_sound_checkpoint(untouched, tmp_path, command, capsys):
    run = tmp_path / "run"
    shutil.copytree(untouched, run)
    for step in ("4", "8"):
        damage(run / "checkpoints" / step, "state/manifest.ocdbt", "cut")
    assert main(command()) == 2
    assert "checkpoints/8 is damaged: " in (err := capsys.readouterr().err) and "nor is any other in" in err
    assert Checkpoints(run / "checkpoints").steps() == [4, 8]  # nothing is thrown away


@pytest.mark.parametrize("step", [3, 5])  # before a save, and while one may be written
def test_a_workdir_that_is_away_for_a_moment(untouched, tmp_path, command, capsys, at_step, step):
    run, away = tmp_path / "run", tmp_path / "away"

    def back():
        while away.exists():
            shutil.rmtree(run, ignore_errors=True)  # what was written where it should be
            with contextlib.suppress(OSError):
                away.rename(run)

    at_step(step, lambda: (run.rename(away), threading.Timer(1.0, back).start()))
    assert main(command()) == 0
    assert step == 5 or "is not there any more; waiting for it" in capsys.readouterr().out
    assert metrics_of(run) == metrics_of(untouched) and Checkpoints(run / "checkpoints").latest() == STEPS


def test_a_workdir_that_is_gone(tmp_path, command, capsys, at_step, monkeypatch):
    monkeypatch.setattr(workdirs, "PATIENCE", 0.1)
    run, away = tmp_path / "run", tmp_path / "away"
    at_step(5, lambda: run.rename(away))
    assert main(command()) == 2
    assert "has been away for 0 s; bring it back" in capsys.readouterr().err
    assert not (run / "config.json").exists() and read_metrics(away / "metrics.jsonl")[-1]["step"] == STEPS


def test_a_worker_process_that_dies(untouched, tmp_path, command, capfd, at_step):
    def kill():
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    at_step(3, kill)
    plain = [text.replace("tiny.py", "tiny.py:paced=false") for text in command()]  # a worker cannot read the config
    assert main([*plain, "--train.workers=1", "--train.prefetch=1"]) == 0
    assert "new ones go on from batch" in capfd.readouterr().err
    assert metrics_of(tmp_path / "run") == metrics_of(untouched)


def test_worker_processes_that_die_before_they_made_a_batch(tmp_path, command, capfd, monkeypatch):
    def die(*arguments):
        raise RuntimeError("Grain worker process 0 was terminated unexpectedly with exit code -9. Perhaps")

    monkeypatch.setattr(trainer, "batches", die)
    assert main(command("--train.workers=1")) == 2
    again, error = capfd.readouterr().err.splitlines()
    assert "new ones go on from batch 0" in again
    assert error == ("bvl: worker processes die before they have made batch 0: Grain worker process 0 was terminated "
                     "unexpectedly with exit code -9; is there memory for workers=1?")


def test_a_worker_process_that_is_slow(untouched, folder, tmp_path, capsys):
    """Training waits for it, learns the same, and reports the share of time that it waited."""
    plain = configs.load(f"{folder}/tiny.py:paced=false")  # a worker cannot read the config
    slow = dataclasses.replace(plain.train, transform=SlowCrop(16, pad=2), workers=1, prefetch=1)
    train(dataclasses.replace(plain, train=slow, steps=STEPS, save_every=4), tmp_path / "run")
    assert metrics_of(tmp_path / "run") == metrics_of(untouched)
    waits = [line["data_wait"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "data_wait" in line]
    assert len(waits) == STEPS and max(waits) > 0.5
    assert f"data wait {waits[-1]:.0%}" in capsys.readouterr().out


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
import jax, jax.numpy as jnp
from big_vision_lite.training.checkpoints import Checkpoints

folder = Path(sys.argv[1])
checkpoints = Checkpoints(folder, max_checkpoints=2)
checkpoints.save(1, {"params": jnp.ones((4000, 1000))}, {}, {"step": 1})
checkpoints.wait()

def kill():
    while not any(path.is_file() for path in folder.glob("2.*/**/*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill).start()
checkpoints.save(2, {"params": jnp.zeros((4000, 1000))}, {}, {"step": 2})
checkpoints.wait()
time.sleep(60)
"""


def test_a_process_that_is_killed_while_it_saves(tmp_path):
    folder = tmp_path / "checkpoints"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(path.name.startswith("2.") for path in folder.iterdir())  # half of it is there
    like = {"params": np.ones((4000, 1000), np.float32)}
    checkpoints = Checkpoints(folder, max_checkpoints=2)
    step, state, data = checkpoints.restore_newest(like, pytest.fail)
    assert (step, data) == (1, {"step": 1}) and (np.asarray(state["params"]) == 1).all()
    checkpoints.save(2, state, {}, {"step": 2})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_steps_after_a_save_leave_it_alone(tmp_path):
    """A save holds the state's own memory, which the next step reuses."""
    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("data",)), PartitionSpec())
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = step(jax.device_put({"params": jnp.zeros((2000, 1000))}, sharding))
    checkpoints = Checkpoints(tmp_path / "checkpoints", max_checkpoints=1)
    checkpoints.save(1, state, {}, {"step": 1})
    for _ in range(20):
        state = step(state)
    checkpoints.wait()
    saved, _ = checkpoints.restore(1, {"params": np.ones((2000, 1000), np.float32)})
    assert (np.asarray(saved["params"]) == 1).all() and (np.asarray(state["params"]) == 21).all()
    checkpoints.close()


def test_a_run_without_progress(capfd):
    ended, codes = threading.Event(), []

    def end(code):
        codes.append(code)
        ended.set()

    with Watchdog(0.2, lambda: "the checkpoint of step 3 is kept", end) as watchdog:
        watchdog.heartbeat(5)
        assert ended.wait(60) and codes == [TRY_AGAIN]
    err = capfd.readouterr().err
    assert "no progress for 0.2 s after step 5" in err and "the checkpoint of step 3 is kept" in err
    assert "test_a_run_without_progress" in err  # where it hangs
    ended.clear()
    with Watchdog(1000, str, end) as watchdog:
        assert not ended.wait(0.1)
    with Watchdog(0, str, end):
        assert not ended.wait(0.1) and codes == [TRY_AGAIN]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed(folder, victim):
    name = f"killed{victim}"
    started = start(folder, name, 2, 2, "--watchdog=60", pace=0.05)
    wait_for_step(folder, name, started, 10)
    while not (folder / name / "checkpoints" / "10").exists():
        assert all(process.poll() is None for process in started), output(folder, name, 0)
        time.sleep(0.02)
    started[victim].kill()
    began = time.monotonic()
    codes = exit_codes(folder, name, started)
    assert time.monotonic() - began < 60 + 60  # the watchdog's time, and that of ending
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] in (TRY_AGAIN, -signal.SIGABRT)
    err = output(folder, name, 1 - victim)[1]
    assert any(text in err for text in ("no progress for 60 s after step", "or the network between them is gone",
                                        "JAX distributed service detected fatal errors")), err
    started = start(folder, name, 2, 2)
    assert exit_codes(folder, name, started) == [0, 0], output(folder, name, 0)
    assert "going on from step" in output(folder, name, 0)[0]
    lines = [line["step"] for line in read_metrics(folder / name / "metrics.jsonl") if "loss" in line]
    assert lines == list(range(1, 41)) and json.dumps(read_run(folder / name)["results"])


@pytest.mark.slow
def test_one_of_two_processes_fails(folder):
    """It prints why and exits, and the other does not wait for it for ever."""
    name, mark, patience = "failed", folder / "fail", 60
    started = start(folder, name, 2, 2, f"--watchdog={patience}", pace=0.05, FAILS="1", FROM=str(mark))
    wait_for_step(folder, name, started, 5)
    mark.touch()
    began = time.monotonic()
    codes = exit_codes(folder, name, started)
    assert time.monotonic() - began < patience + 60  # of which ending takes a part
    assert codes[1] == TRY_AGAIN and "ValueError: this crop cannot be made" in output(folder, name, 1)[1]
    assert codes[0] in (TRY_AGAIN, -signal.SIGABRT)
    err = output(folder, name, 0)[1]
    assert any(text in err for text in (f"no progress for {patience} s after step", "or the network between them "
                                        "is gone", "JAX distributed service detected fatal errors")), err
