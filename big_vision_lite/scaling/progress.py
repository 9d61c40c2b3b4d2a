"""One line for a whole study: which run is at work, how far, and when all will be done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from big_vision_lite.scaling import cost
from big_vision_lite.scaling.study import Run, Study
from big_vision_lite.training.progress import duration


class Board:
    """A live line on a terminal; elsewhere a line when a run begins and one when it ends.

    Args:
      runs: all that is asked for, in order.
      done: those that were done before.
    """

    def __init__(self, study: Study, workdir: Path, runs: Sequence[Run], done: Sequence[Run]):
        self.console = Console(soft_wrap=True, highlight=False)
        self.workdir, self.runs = workdir, list(runs)
        self.measured = timed(workdir, done)
        self.over = {run.name for run in done}
        self.began, self.first, self.looked = time.monotonic(), 0, 0.0
        columns = (TextColumn("{task.fields[say]}"), BarColumn(24), TaskProgressColumn(),
                   TextColumn("{task.fields[left]}"))
        self._progress = Progress(*columns, console=self.console, transient=True,
                                  disable=not self.console.is_terminal)
        self._task = self._progress.add_task("", total=1.0, say=study.name, left="")
        self.say(f"{workdir}: study {study.name}, {len(runs)} runs, of which {len(done)} are done; "
                 + self._left(0.0))

    def __enter__(self) -> Board:
        self._progress.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def begin(self, run: Run, attempt: int) -> None:
        self.began, self.first, self.looked = time.monotonic(), _step(self.workdir / run.name), 0.0
        again = f", going on from about step {self.first}" if self.first else ""
        self.say(f"[{self.runs.index(run) + 1}/{len(self.runs)}] {run.name}: {run.experiment.steps:,} steps{again}"
                 + (f", attempt {attempt}" if attempt > 1 else ""))

    def look(self, run: Run) -> None:
        """Bring the live line up to date; cheap, and at most twice a second."""
        if not self.console.is_terminal or time.monotonic() < self.looked + 0.5:
            return
        self.looked = time.monotonic()
        step = _step(self.workdir / run.name)
        share = step / run.experiment.steps
        every = [cost.seconds(r.experiment, self.measured)[0] for r in self.runs]
        past = sum(s for r, s in zip(self.runs, every, strict=True) if r.name in self.over)
        here = every[self.runs.index(run)] * share
        self._progress.update(self._task, completed=(past + here) / sum(every), left=self._left(here),
                              say=f"[{self.runs.index(run) + 1}/{len(self.runs)}] {run.name}  step {step}"
                                  f"/{run.experiment.steps}")

    def end(self, run: Run) -> None:
        self.over.add(run.name)
        seconds = time.monotonic() - self.began
        if not self.first:  # what was resumed tells nothing of the whole
            self.measured.append((run.experiment, seconds))
        self.say(f"    done in {duration(seconds)}; {self._left(0.0)}")

    def _left(self, of_this: float) -> str:
        left = [cost.seconds(run.experiment, self.measured) for run in self.runs if run.name not in self.over]
        if not left:
            return "nothing is left to run"
        about = "" if left[0][1] else ", by an assumed speed"
        return f"about {duration(max(sum(seconds for seconds, _ in left) - of_this, 0.0))} left{about}"


def timed(workdir: Path, done: Sequence[Run]) -> list[tuple]:
    """(experiment, seconds) of runs that are done, by their run.json."""
    found = []
    for run in done:
        told = json.loads((workdir / run.name / "run.json").read_text())
        if told.get("wall_seconds"):
            found.append((run.experiment, told["wall_seconds"]))
    return found


def _step(folder: Path) -> int:
    """The last step in metrics.jsonl, from the file's end alone."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(os.path.getsize(file.name) - 8192, 0))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
