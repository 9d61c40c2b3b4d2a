"""One run per workdir: the others say who is there and end, and the result is that of a run alone."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from object_store import serving
from processes import CONFIG, exit_codes, metrics_of, output, start, train_command, wait_for_step

from big_vision_lite.cli import main
from big_vision_lite.system.ownership import FILE
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("compile_once")
STEPS = "--steps=12"
GATE = 'while os.environ.get("GATE") and not os.path.exists(os.environ["GATE"]): time.sleep(0.01)\n        '
SHORT_LEASE = ("import sys; from big_vision_lite.system import ownership; ownership.BEAT, ownership.LEASE = 0.2, 3.0; "
               "from big_vision_lite.cli import main; sys.exit(main(sys.argv[1:]))")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the config tiny.py, whose training waits while the file $GATE is missing, and a run of it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.py").write_text(CONFIG.replace("time.sleep(", GATE + "time.sleep("))
    assert main(train_command(folder, "alone", STEPS)) == 0
    return folder


def assert_as_alone(folder, run):
    assert metrics_of(run) == metrics_of(folder / "alone")
    states = [Checkpoints(path / "checkpoints").arrays() for path in (run, folder / "alone")]
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name], err_msg=name)


def test_a_second_run_is_refused_and_a_dead_one_succeeded(folder, capfd):
    run = folder / "run"
    first, = started = start(folder, "run", 1, 8, STEPS, pace=0.1)
    wait_for_step(folder, "run", started, 2)
    refusal = re.compile(rf"bvl: '{run}' is in use by process {first.pid} on \S+, which began 0:00:\d\d ago; wait .*\n")
    for command in (train_command(folder, "run", STEPS),
                    train_command(folder, "run", STEPS, "--optimizer.learning-rate=0.3")):
        capfd.readouterr()
        assert main(command) == 2
        assert refusal.fullmatch(capfd.readouterr().err)
    first.kill()
    assert exit_codes(folder, "run", started) == [-signal.SIGKILL]
    assert json.loads((run / FILE).read_text())["pid"] == first.pid
    assert main(train_command(folder, "run", STEPS)) == 0
    assert re.search(rf"took '{run}' over from process {first.pid} on .* and has ended", capfd.readouterr().out)
    assert_as_alone(folder, run)
    assert not (run / FILE).exists()


@pytest.mark.slow
def test_of_several_that_start_at_once_one_trains(folder):
    """2 to 5 of them, 30 times, at random moments; all but one end before training goes on."""
    draw = random.Random()
    for number in range(30):
        name, gate = f"at_once{number}", folder / f"gate{number}"
        started = []
        for index in range(draw.randint(2, 5)):
            time.sleep(draw.uniform(0, 1.5))
            (folder / f"{number}").mkdir(exist_ok=True)
            more = [STEPS, *draw.choice([[], [], ["--optimizer.learning-rate=0.3"]])] if started else [STEPS]
            with open(folder / f"{number}" / f"{index}.err", "w") as err:
                started.append(subprocess.Popen(
                    [sys.executable, "-m", "big_vision_lite", *train_command(folder, name, *more)], stderr=err,
                    stdout=subprocess.DEVNULL, env={**os.environ, "GATE": str(gate), "JAX_NUM_CPU_DEVICES": "8",
                                                    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}))
        while sum(process.poll() is None for process in started) > 1:
            time.sleep(0.02)
        gate.touch()
        codes = [process.wait(300) for process in started]
        errors = [(folder / f"{number}" / f"{index}.err").read_text() for index in range(len(started))]
        assert sorted(codes) == [0] + [2] * (len(started) - 1), (codes, errors)
        winner = codes.index(0)
        for code, error in zip(codes, errors, strict=True):
            assert not code or (f"is in use by process {started[winner].pid} on" in error and error.count("\n") == 1)
        if json.loads((folder / name / "config.json").read_text())["optimizer"]["learning_rate"] == 0.01:
            assert_as_alone(folder, folder / name)


@pytest.mark.slow
def test_two_processes_own_their_folder_together(folder):
    first = start(folder, "pair", 2, 2, STEPS, pace=0.3)
    wait_for_step(folder, "pair", first, 2)
    (folder / "second").symlink_to(folder / "pair")
    second = start(folder, "second", 2, 2, STEPS)
    assert exit_codes(folder, "second", second) == [2, 2]
    errors = [output(folder, "second", process)[1] for process in range(2)]
    assert f"is in use by process {first[0].pid} on" in errors[0]
    assert "process 0 cannot use" in errors[1]
    assert exit_codes(folder, "pair", first) == [0, 0]
    assert [line["step"] for line in metrics_of(folder / "pair")] == [*range(1, 13), 12]


@pytest.mark.slow
def test_a_run_that_was_stopped_for_long_writes_nothing_more(folder):
    """In a bucket, where no lock tells that it exists."""
    pytest.importorskip("gcsfs")
    with serving() as store:
        def begin(pace):
            return subprocess.Popen(
                [sys.executable, "-c", SHORT_LEASE, "train", f"{folder}/tiny.py", "--workdir", "gs://bucket/run", STEPS,
                 "--save-every=3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "PACE": str(pace), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")})

        first = begin(0.2)
        while not store.under("run/checkpoints/3/commit_success.txt"):
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = begin(0)
        out, error = second.communicate(timeout=300)
        assert second.returncode == 0, error
        assert f"over from process {first.pid} on" in out and "gave no sign of life for 3 s" in out
        objects = dict(store.objects)
        first.send_signal(signal.SIGCONT)
        error = first.communicate(timeout=60)[1]
        assert first.returncode == 2
        assert store.objects == objects
        assert_as_alone(folder, as_path("gs://bucket/run"))
