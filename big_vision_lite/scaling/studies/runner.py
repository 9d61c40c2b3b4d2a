"""Runs a study on this machine: the unfinished runs in order, each in its own process.

A run that crashes or runs out of memory affects nothing else. Runs of a study that was killed resume from their
checkpoints. The process of a run holds a pipe to the study: if the study dies, the run saves and ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from big_vision_lite import config as configs
from big_vision_lite.errors import UserError, writing
from big_vision_lite.scaling.studies import results
from big_vision_lite.scaling.studies.progress import StudyProgress
from big_vision_lite.scaling.studies.study import Run, RunState, Study, read_study
from big_vision_lite.system.ownership import Ownership, own
from big_vision_lite.system.signals import collect_signals

ATTEMPTS = 2
"""Attempts per run before the study continues without it."""
OUTLIVING_SECONDS = 120.0
"""How long a run waits for its folder, in which the process of a study that was killed may still be saving."""

Command = Callable[[Run, Path], list[str]]


def command_of(run: Run, workdir: Path, imports: Sequence[str] = ()) -> list[str]:
    """Python's arguments to train a run from its resolved config in its folder."""
    flags = [word for module in imports for word in ("--import", module)]
    return ["-m", "big_vision_lite.commands.study_run", str(workdir / "configs" / f"{run.name}.json"),
            str(workdir / run.name), *flags]


def prepare(study: Study, workdir: Path, spec: str = "") -> dict[str, RunState]:
    """Write the study's folder: the resolved config of each run, study.json and results.csv.

    Returns:
      The state of each run of the study.

    Raises:
      UserError: the folder cannot be written, or holds another study or runs of other configs.
    """
    study.check(workdir)
    for run in study.runs:
        results.write_file(workdir / "configs" / f"{run.name}.json", configs.dumps(study.experiment(run, workdir)))
    (workdir / "logs").mkdir(exist_ok=True)
    left = {run.name for run in results.unfinished(study, workdir, study.runs)}
    states = read_study(workdir).states
    states = {run.name: states.get(run.name, RunState(run.name)) for run in study.runs}
    for run in study.runs:
        state = states[run.name]
        if run.name not in left:
            states[run.name] = RunState(run.name, "done", max(state.attempts, 1))
        elif state.status != "failed":
            state.status = "missing"
    _save(study, workdir, states, spec)
    return states


def _save(study: Study, workdir: Path, states: dict[str, RunState], spec: str = "") -> None:
    """Write study.json and results.csv."""
    values = {"name": study.name, "spec": spec or read_study(workdir).spec,
            "runs": [{"name": run.name, "after": list(run.needs), "factors": study.factors(run),
                      **msgspec.structs.asdict(states[run.name])} for run in study.runs]}
    results.write_file(workdir / "study.json", json.dumps(values, indent=1) + "\n")
    results.write_results(study, workdir)


def execute(study: Study, workdir: Path, runs: Sequence[Run], spec: str = "", imports: Sequence[str] = (),
            command: Command | None = None, budget: float = math.inf) -> int:
    """Run the unfinished ones of ``runs``, which are in order. Returns 0, 1 if a run failed, 128 + n for signal n.

    A failed run is retried once, then skipped with everything that needs it. Runs that failed in an earlier call are
    retried.

    Args:
      command: Python's arguments for a run; by default `command_of`.
      budget: seconds; no run is begun that would end later, by the estimate.

    Raises:
      UserError: as `prepare` and `own_folder`.
    """
    command = command or (lambda run, folder: command_of(run, folder, imports))
    deadline = time.monotonic() + budget
    with own_folder(workdir), collect_signals(signal.SIGTERM, signal.SIGINT) as received:
        states = prepare(study, workdir, spec)
        left = {run.name for run in results.unfinished(study, workdir, runs)}
        runs = tuple(run for run in study.ordered() if run.name in left or run in runs)
        done = [run for run in runs if run.name not in left]
        with StudyProgress(study, workdir, runs, done) as progress:
            for run in runs:
                state = states[run.name]
                if run.name not in left:
                    continue
                if time.monotonic() + progress.seconds(run) > deadline:
                    waiting = sum(states[name].status != "done" for name in left)
                    progress.print(f"{run.name} would end after the {budget:.0f} s of the budget; {waiting} of "
                                   f"{len(runs)} runs are left, with which the same command goes on")
                    return 0
                unmet = [name for name in run.needs if states[name].status != "done"]
                if unmet:
                    state.status, state.error = "missing", f"skipped: it needs {', '.join(unmet)}"
                    progress.print(f"{run.name}: {state.error}")
                else:
                    _attempt(study, run, workdir, states, command, received, progress)
                _save(study, workdir, states, spec)
                if received:
                    progress.print(f"stopped by {signal.Signals(received[0]).name}; the same command resumes")
                    return 128 + received[0]
        unfinished = [run for run in runs if states[run.name].status != "done"]
        for run in unfinished:
            state = states[run.name]
            print(f"bvl: {run.name} {'failed: ' if state.status == 'failed' else ''}{state.error}", file=sys.stderr)
        if unfinished:
            print(f"bvl: {len(unfinished)} of {len(runs)} runs are missing; their output is in {workdir / 'logs'}; the "
                  "same command retries them", file=sys.stderr)
        return 1 if unfinished else 0


def _attempt(study: Study, run: Run, workdir: Path, states: dict[str, RunState], command: Command,
             received: list[int], progress: StudyProgress) -> None:
    """Run up to `ATTEMPTS` times, and update the run's state."""
    state = states[run.name]
    for attempt in range(1, ATTEMPTS + 1):
        state.status, state.error, state.attempts = "running", None, state.attempts + 1
        _save(study, workdir, states)
        progress.begin(run, attempt)
        log = workdir / "logs" / f"{run.name}.txt"
        code = _process(command(run, workdir), log, received, lambda run=run: progress.update(run))
        if received:
            state.status = "done" if code == 0 and results.finished(workdir / run.name, run.experiment) else "missing"
            return
        if code == 0:
            try:
                results.final_metrics(workdir / run.name, run.experiment)
            except UserError as error:
                state.error = str(error)
            else:
                state.status = "done"
                progress.end(run)
                return
        else:
            output = _last_line(log)
            state.error = f"{output} (exit code {code})" if code >= 0 else f"killed by {_signal_name(-code)}; {output}"
        progress.print(f"{run.name}: attempt {attempt} of {ATTEMPTS} failed: {state.error}")
    state.status = "failed"


def _process(command: Sequence[str], log: Path, received: list[int], poll: Callable[[], None]) -> int:
    """Run a Python process with its output in ``log`` and return its exit code. Forward our first signal as SIGTERM, a
    further one as SIGKILL."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=output,
                                   stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        forwarded = 0
        try:
            while process.poll() is None:
                if len(received) > forwarded:
                    forwarded = len(received)
                    process.terminate() if forwarded == 1 else process.kill()
                poll()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.25)
        finally:
            process.stdin.close()
    return process.returncode


def own_folder(workdir: Path) -> Ownership:
    """Own a study's folder. Raises: UserError when another process owns it, or it cannot be written."""
    with writing(f"to the workdir {str(workdir)!r}", "choose another --workdir"):
        return own(workdir)


def end_with_parent() -> None:
    """Send this process SIGTERM, on which it saves and ends, when the other end of its standard input closes."""
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

