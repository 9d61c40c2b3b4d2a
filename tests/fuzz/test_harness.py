"""The harness notices commands that crash, hang, take memory, print a traceback or a riddle, or read wrongly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fuzz.harness import Case, Failed, check, verdict

NAMED = "bvl: cannot read in.txt: it is empty; fill it"


def refuse(arguments):
    print(NAMED, file=sys.stderr)
    return 2


def accept(arguments):
    return 0


def crash(arguments):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(arguments):
    while True:
        time.sleep(1)


def allocate(arguments):
    return [np.ones(2**27) for _ in range(3)] and 0


def allocate_for_a_moment(arguments):
    np.ones(300 * 2**20)
    return 0


def raise_error(arguments):
    raise ValueError("a bug")


def report_a_bug(arguments):
    print("bvl: this is a bug in in.txt", file=sys.stderr)
    return 1


def print_traceback(arguments):
    print("Traceback (most recent call last):\nbvl: in.txt", file=sys.stderr)
    return 2


def explain(arguments):
    print(f"{NAMED}\nand more", file=sys.stderr)
    return 2


def riddle(arguments):
    print("bvl: something is wrong", file=sys.stderr)
    return 2


def repeat(arguments):
    print(NAMED, "x" * 10_000, file=sys.stderr)
    return 2


def leave(arguments):
    os._exit(0)


def start_another(arguments):
    Path("pid").write_text(str(subprocess.Popen(["sleep", "100"]).pid))
    return 0


def wrong(folder, arguments):
    return "3 instead of 4"


def crash_when_compared(folder, arguments):
    crash(arguments)


def same(folder, arguments):
    return None


@pytest.mark.parametrize(
    ("entry", "compare", "expect", "reason"),
    [
        ("crash", None, "any", "killed by SIGSEGV"),
        ("hang", None, "any", "no end in 1 s"),
        ("allocate", None, "any", "more than 2 GiB"),
        ("allocate_for_a_moment", None, "any", "GiB resident"),
        ("raise_error", None, "any", "exit code 1"),
        ("report_a_bug", None, "any", "exit code 1"),
        ("print_traceback", None, "any", "exit code 2"),
        ("explain", None, "any", "in 2 lines"),
        ("riddle", None, "any", "names none of in.txt"),
        ("repeat", None, "any", "in 10,"),
        ("leave", None, "any", "left with 0"),
        ("accept", "wrong", "any", "read wrongly: 3 instead of 4"),
        ("accept", "crash_when_compared", "any", "killed by SIGSEGV"),
        ("accept", None, "refused", "accepted, though"),
        ("refuse", None, "accepted", "sound, and refused"),
    ],
)
def test_faults_are_noticed(worker, tmp_path, entry, compare, expect, reason):
    result = worker.call(
        (),
        tmp_path,
        f"fuzz.test_harness:{entry}",
        compare and f"fuzz.test_harness:{compare}",
        seconds=1 if entry == "hang" else None,
    )
    with pytest.raises(Failed, match=re.escape(reason)):
        verdict(Case((), ("in.txt",), expect=expect), result)


def test_what_is_right_passes(worker, tmp_path):
    case = Case((), ("in.txt",), check="fuzz.test_harness:same")
    assert verdict(case, worker.call((), tmp_path, "fuzz.test_harness:refuse")) == "refused"
    assert verdict(case, worker.call((), tmp_path, "fuzz.test_harness:accept", case.check)) == "accepted"


def test_nothing_goes_on(worker, tmp_path):
    worker.call((), tmp_path, "fuzz.test_harness:start_another")
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"{pid} is still there")


def kill_the_worker(arguments):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1)


def test_a_lost_worker_is_one_failure(worker, tmp_path):
    with pytest.raises(Failed, match="has left with -9"):
        worker.call((), tmp_path, "fuzz.test_harness:kill_the_worker")
    assert verdict(Case((), ()), worker.call((), tmp_path, "fuzz.test_harness:accept")) == "accepted"


def test_a_failing_input_is_kept(worker, tmp_path, monkeypatch):
    """Over the whole way, with the real command: the file is sound, and the case says that it must be refused."""
    monkeypatch.setattr("fuzz.harness.KEPT", tmp_path / "kept")

    def make(rng, number, folder):
        (folder / "labels.csv").write_text("path,labels\n")
        os.mkfifo(folder / "pipe")
        return Case(("config", "list", "."), ("labels.csv",), "made up", "refused")

    properties = []
    with pytest.raises(Failed, match=r"made-up-3 of seed 5 \(made up\): accepted, though"):
        check(worker, tmp_path / "input", "made-up", make, 5, 3, lambda *pair: properties.append(pair))
    kept = tmp_path / "kept" / "made-up-5-3"
    assert {path.name for path in kept.iterdir()} == {"labels.csv", ".log"} and (kept / ".log" / "stderr").is_file()
    assert properties[-1] == ("fuzz", ["made-up", "failed"]) and not (tmp_path / "input").exists()
