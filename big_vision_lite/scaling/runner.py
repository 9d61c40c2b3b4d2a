"""Runs a study on this machine: what is missing, in order, each run in a process of its own.

A run that crashes or is out of memory takes nothing else with it. A study that is killed leaves runs that go on from
their checkpoints. The process of a run holds a pipe to the study: where the study dies, the run saves and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from big_vision_lite import config as configs
from big_vision_lite.errors import UserError
from big_vision_lite.scaling import results
from big_vision_lite.scaling.progress import Board
from big_vision_lite.scaling.study import Run, Study, read_study

ATTEMPTS = 2
"""Times that a run is tried before the study goes on without it."""
LOCK_SECONDS = 120.0
"""How long to wait for a run that outlived its study and is saving."""

Command = Callable[[Run, Path], list[str]]


@dataclasses.dataclass
class State:
    """What study.json tells of a run."""

    status: str = "missing"
    """missing, running, done or failed."""
    attempts: int = 0
    error: str | None = None


def command_of(run: Run, workdir: Path, imports: Sequence[str] = ()) -> list[str]:
    """The command that trains a run from its resolved config, in its folder."""
    allowed = [part for module in imports for part in ("--import", module)]
    return ["-m", "big_vision_lite.commands.study", str(workdir / "configs" / f"{run.name}.json"),
            str(workdir / run.name), *allowed]


def prepare(study: Study, workdir: Path, spec: str = "") -> dict[str, State]:
    """Make the study's folder: the resolved config of each run, study.json and results.csv.

    Returns:
      The state of each run of the study.

    Raises:
      UserError: the folder cannot be written, or holds another study or runs of other configs.
    """
    study.check(workdir)
    try:
        for name in ("configs", "logs"):
            (workdir / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the workdir {str(workdir)!r}: {error.strerror or error}; choose another "
                        "--workdir") from None
    for run in study.runs:
        resolved = configs.to_json(study.experiment(run, workdir))
        results.replace(workdir / "configs" / f"{run.name}.json", json.dumps(resolved, indent=2) + "\n")
    known = {run["name"]: run for run in read_study(workdir).get("runs", [])}
    states = {}
    for run in study.runs:
        told = known.get(run.name, {})
        state = State(attempts=told.get("attempts", 0), error=told.get("error"),
                      status="failed" if told.get("status") == "failed" else "missing")
        if results.finished(workdir / run.name, run.experiment):
            state = State("done", max(state.attempts, 1))
        states[run.name] = state
    keep(study, workdir, states, spec)
    return states


def keep(study: Study, workdir: Path, states: dict[str, State], spec: str = "") -> None:
    """Write study.json and results.csv."""
    told = {"name": study.name, "spec": spec or read_study(workdir).get("spec", ""),
            "runs": [{"name": run.name, "after": list(run.needs), "factors": study.factors(run),
                      **dataclasses.asdict(states[run.name])} for run in study.runs]}
    results.replace(workdir / "study.json", json.dumps(told, indent=1) + "\n")
    results.write(study, workdir)


def execute(study: Study, workdir: Path, runs: Sequence[Run], spec: str = "", imports: Sequence[str] = (),
            command: Command | None = None) -> int:
    """Run what is missing of ``runs``, which are in order. Returns 0, 1 when a run failed, or 128 + n for signal n.

    A run that failed is tried once more, then left; what needs it is passed over. Failed runs of an earlier call are
    tried again.

    Args:
      command: arguments for the Python of a run; by default `command_of`.

    Raises:
      UserError: as `prepare`, or another study is at work in the folder.
    """
    command = command or (lambda run, folder: command_of(run, folder, imports))
    with _locked(workdir) as lock, _signals() as received:
        states = prepare(study, workdir, spec)
        with Board(study, workdir, runs, [run for run in runs if states[run.name].status == "done"]) as board:
            for run in runs:
                state = states[run.name]
                if state.status == "done":
                    continue
                lacking = [name for name in run.needs if states[name].status != "done"]
                if lacking:
                    state.status, state.error = "missing", f"not run, for it needs {', '.join(lacking)}"
                    board.say(f"{run.name}: {state.error}")
                else:
                    _attempt(study, run, workdir, states, command, lock, received, board)
                keep(study, workdir, states, spec)
                if received:
                    board.say(f"stopped by {signal.Signals(received[0]).name}; the same command goes on from there")
                    return 128 + received[0]
        lost = [run for run in runs if states[run.name].status != "done"]
        for run in lost:
            state = states[run.name]
            print(f"bvl: {run.name} {'failed: ' if state.status == 'failed' else ''}{state.error}", file=sys.stderr)
        if lost:
            print(f"bvl: {len(lost)} of {len(runs)} runs are missing; their output is in {workdir / 'logs'}; the same "
                  "command tries them again", file=sys.stderr)
        return 1 if lost else 0


def _attempt(study: Study, run: Run, workdir: Path, states: dict[str, State], command: Command, lock: int,
             received: list[int], board: Board) -> None:
    """Try a run until it is done, and tell its state."""
    state = states[run.name]
    for attempt in range(1, ATTEMPTS + 1):
        state.status, state.error, state.attempts = "running", None, state.attempts + 1
        keep(study, workdir, states)
        board.begin(run, attempt)
        log = workdir / "logs" / f"{run.name}.txt"
        code = _process(command(run, workdir), log, lock, received, lambda run=run: board.look(run))
        if received:
            state.status = "done" if code == 0 and results.finished(workdir / run.name, run.experiment) else "missing"
            return
        if code == 0:
            try:
                results.figures(workdir / run.name, run.experiment)
            except UserError as error:
                state.error = str(error)
            else:
                state.status = "done"
                board.end(run)
                return
        else:
            said = _last_line(log)
            state.error = f"{said} (exit code {code})" if code >= 0 else f"killed by {_signal_name(-code)}; {said}"
        board.say(f"{run.name}: attempt {attempt} of {ATTEMPTS} failed: {state.error}")
    state.status = "failed"


def _process(command: Sequence[str], log: Path, lock: int, received: list[int], look: Callable[[], None]) -> int:
    """Run a Python process, its output in ``log``, and return its exit code. Signals to us go on to it as SIGTERM."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=output,
                                   stderr=subprocess.STDOUT, env=environment, pass_fds=(lock,), start_new_session=True)
        asked = 0
        try:
            while process.poll() is None:
                if len(received) > asked:
                    asked = len(received)
                    process.terminate() if asked == 1 else process.kill()
                look()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.25)
        finally:
            process.stdin.close()
    return process.returncode


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[int]:
    """Hold the study's folder, in this process and in those it starts. Raises: UserError when another does."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"cannot write to the workdir {str(workdir)!r}: {error.strerror or error}; choose another "
                        "--workdir") from None
    try:
        deadline, told = time.monotonic() + LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"another study is at work in {str(workdir)!r}; wait for it, or choose another "
                                    "--workdir") from None
                if not told:
                    told = print("waiting for another process that is at work here", file=sys.stderr) is None
                time.sleep(0.2)
        yield lock
    finally:
        os.close(lock)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {number: signal.signal(number, lambda signum, frame: received.append(signum))
           for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Ask this process to save and end when the other end of its standard input goes away."""
    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("bvl: ")[:300] if lines else "no output"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"

