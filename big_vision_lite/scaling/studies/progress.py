"""Progress of a whole study in one line: the current run, how far it is, and the time left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from big_vision_lite.experiment import Experiment
from big_vision_lite.scaling.studies import cost
from big_vision_lite.scaling.studies.study import Run, Study
from big_vision_lite.system.parse import open_regular
from big_vision_lite.training.metrics import read_run
from big_vision_lite.training.progress import duration


class _Line(msgspec.Struct):
    """What is read of a line of metrics.jsonl."""

    step: int


class StudyProgress:
    """A live line on a terminal; elsewhere one line when a run begins and one when it ends.

    Args:
      runs: all selected runs, in order.
      done: those of them that are done already.
    """

    def __init__(self, study: Study, workdir: Path, runs: Sequence[Run], done: Sequence[Run]):
        self.console = Console(soft_wrap=True, highlight=False)
        self.workdir, self.runs = workdir, list(runs)
        self.timed = timed_runs(workdir, done)
        self.done = {run.name for run in done}
        self.began, self.first_step = time.monotonic(), 0
        columns = (TextColumn("{task.fields[label]}"), BarColumn(24), TaskProgressColumn(),
                   TextColumn("{task.fields[left]}"))
        self._progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._task = self._progress.add_task("", total=1.0, label=study.name, left="")
        self.print(f"{workdir}: study {study.name}, {len(done)} of {len(runs)} runs done; {self._left(0.0)}")

    def __enter__(self) -> StudyProgress:
        self._progress.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._progress.stop()

    def print(self, text: str) -> None:
        self.console.print(text, markup=False)

    def seconds(self, run: Run) -> float:
        """How long a run will take, by the speed of those before it."""
        return cost.estimate_seconds(run.experiment, self.timed)[0]

    def begin(self, run: Run, attempt: int) -> None:
        self.began, self.first_step = time.monotonic(), _last_step(self.workdir / run.name)
        resumed = f", resumed from about step {self.first_step}" if self.first_step else ""
        self.print(f"[{self.runs.index(run) + 1}/{len(self.runs)}] {run.name}: {run.experiment.steps:,} steps{resumed}"
                   + (f", attempt {attempt}" if attempt > 1 else ""))

    def update(self, run: Run) -> None:
        """Update the live line."""
        if not self.console.is_terminal:
            return
        step = _last_step(self.workdir / run.name)
        seconds = [cost.estimate_seconds(r.experiment, self.timed)[0] for r in self.runs]
        spent = sum(s for r, s in zip(self.runs, seconds, strict=True) if r.name in self.done)
        current = seconds[self.runs.index(run)] * step / run.experiment.steps
        self._progress.update(self._task, completed=(spent + current) / sum(seconds), left=self._left(current),
                              label=f"[{self.runs.index(run) + 1}/{len(self.runs)}] {run.name}  step {step}"
                                    f"/{run.experiment.steps}")

    def end(self, run: Run) -> None:
        self.done.add(run.name)
        seconds = time.monotonic() - self.began
        if not self.first_step:  # the time of a resumed run is not that of the whole run
            self.timed.append((run.experiment, seconds))
        self.print(f"    done in {duration(seconds)}; {self._left(0.0)}")

    def _left(self, current: float) -> str:
        left = [cost.estimate_seconds(run.experiment, self.timed) for run in self.runs if run.name not in self.done]
        if not left:
            return "nothing is left to run"
        assumed = "" if left[0][1] else ", at an assumed speed"
        return f"about {duration(max(sum(seconds for seconds, _ in left) - current, 0.0))} left{assumed}"


def timed_runs(workdir: Path, done: Sequence[Run]) -> list[tuple[Experiment, float]]:
    """(experiment, seconds) of finished runs, from their run.json."""
    seconds = [read_run(workdir / run.name).get("wall_seconds") for run in done]
    return [(run.experiment, taken) for run, taken in zip(done, seconds, strict=True) if taken]


def _last_step(folder: Path) -> int:
    """The last step in metrics.jsonl, read from the end of the file; 0 where there is none yet."""
    lines = []
    with contextlib.suppress(OSError), open(open_regular(folder / "metrics.jsonl"), "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - 8192, 0))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(msgspec.MsgspecError):  # the first and the last may be parts of a line
            return msgspec.json.decode(line, type=_Line).step
    return 0
