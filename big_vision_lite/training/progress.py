"""A run's display in the terminal, and its clock."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text


class Clock:
    """Time since the last lap, split into training, waiting for data, and pauses (evaluation, saving)."""

    def __init__(self) -> None:
        self._lap_began, self._waited, self._paused = time.perf_counter(), 0.0, 0.0

    @contextmanager
    def waiting(self):
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def pause(self):
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def lap(self) -> tuple[float, float]:
        """Seconds of training since the last lap, without pauses, and the share of them spent waiting for data."""
        now = time.perf_counter()
        seconds = max(now - self._lap_began - self._paused, 1e-9)
        share = min(self._waited / seconds, 1.0)
        self._lap_began, self._waited, self._paused = now, 0.0, 0.0
        return seconds, share


class Forecast:
    """Time until a run ends: the steps, evaluations and saves to come, each as long as the latest one was.

    Args:
      start: steps done before.
      eval_interval, save_interval: steps between evaluations and saves; None: only at the end.
    """

    def __init__(self, start: int, steps: int, eval_interval: int | None = None, save_interval: int | None = None):
        intervals = {"evaluation": eval_interval, "save": save_interval}
        self._steps = steps
        self._to_come = {kind: _events(start, steps, interval) for kind, interval in intervals.items()}
        self._latest = dict[str, float]()
        self._seconds_per_step: float | None = None
        self._seconds, self._made_at = 0.0, 0.0

    @contextmanager
    def timing(self, kind: Literal["evaluation", "save"], step: int) -> Iterator[None]:
        """One of those that are to come, after ``step`` steps."""
        start = time.perf_counter()
        yield
        self._latest[kind] = time.perf_counter() - start
        self._to_come[kind] = max(self._to_come[kind] - 1, 0)
        if self._seconds_per_step is not None:
            self.update(step, self._seconds_per_step)

    def update(self, step: int, seconds_per_step: float) -> None:
        """Forecast again, after ``step`` steps."""
        pauses = sum(count * self._latest.get(kind, 0.0) for kind, count in self._to_come.items())
        self._seconds_per_step, self._made_at = seconds_per_step, time.perf_counter()
        self._seconds = (self._steps - step) * seconds_per_step + pauses

    def __str__(self) -> str:
        """The rest of what was forecast last; "over ..." while an evaluation or save to come was never timed; "" before
        the first `update`."""
        if self._seconds_per_step is None:
            return ""
        left = max(self._seconds - (time.perf_counter() - self._made_at), 0.0)
        unknown = any(count and kind not in self._latest for kind, count in self._to_come.items())
        return f"{'over ' if unknown else ''}{duration(left)} left"


def _events(start: int, steps: int, interval: int | None) -> int:
    """How many steps after ``start`` are multiples of the interval, or the last."""
    if start >= steps:
        return 0
    return 1 + ((steps - 1) // interval - start // interval if interval else 0)


class _TimeLeft(ProgressColumn):
    """The forecast of a run; the time left of an evaluation."""

    def render(self, task: Task) -> Text:
        if (forecast := task.fields["forecast"]) is not None:
            return Text(str(forecast))
        return Text("" if task.time_remaining is None else f"{duration(task.time_remaining)} left")


class Display:
    """A live line on a terminal, with another one below during an evaluation; elsewhere one plain line per report.

    Args:
      start: steps done before.
      quiet: print nothing.
      forecast: of this run's end; None: of one that evaluates and saves at the end.
      console: where to; None: the standard output.
    """

    def __init__(self, steps: int, start: int, quiet: bool = False, forecast: Forecast | None = None,
                 console: Console | None = None):
        self.console = console or Console(quiet=quiet, soft_wrap=True, highlight=False)
        self.steps, self.forecast, self._stopping = steps, forecast or Forecast(start, steps), False
        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(24),
                   TextColumn("{task.fields[summary]}"), _TimeLeft(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self.console, transient=True,
                                  disable=not self.console.is_terminal)
        self._task = self._progress.add_task("step", total=steps, completed=start, summary="compiling",
                                             forecast=self.forecast)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, markup=False)

    def acknowledge(self, signum: int) -> None:
        """Say that a signal to stop has come in, once: the loop acts on it when its step or evaluation has ended."""
        if signum in (signal.SIGINT, signal.SIGTERM) and not self._stopping:
            self._stopping = True
            self.say(f"{signal.Signals(signum).name}: the run stops after the step or evaluation in progress, with a "
                     "checkpoint; a second signal ends it at once, without")

    def step(self, step: int) -> None:
        """Steps are done; the first one also shows that the program is compiled."""
        compiled = {"summary": "training"} if self._progress.tasks[0].fields["summary"] == "compiling" else {}
        self._progress.update(self._task, completed=step, **compiled)

    @contextmanager
    def evaluation(self, name: str, images: int) -> Iterator[Callable[[int], None]]:
        """A line for an evaluation, which goes when that ends; to be called with the number of images of each batch."""
        task = self._progress.add_task(name, total=images, summary="images", forecast=None)
        try:
            yield lambda count: self._progress.advance(task, count)
        finally:
            self._progress.remove_task(task)

    def report(self, step: int, metrics: dict[str, float], seconds_per_step: float) -> None:
        """Show the latest metrics: loss, images/s, share of time waiting for data; and the time left."""
        self.forecast.update(step, seconds_per_step)
        summary = (f"loss {metrics['loss']:.4g}  {metrics['images_per_second']:,.0f} images/s  "
                   f"data wait {metrics['data_wait']:.0%}")
        if self.console.is_terminal:
            self._progress.update(self._task, completed=step, summary=summary)
        else:
            self.say(f"step {step}/{self.steps}  {summary}  {self.forecast}")


def device_memory() -> dict[str, float]:
    """Peak memory use so far of this process's fullest device, in GiB; empty for CPUs, which do not report it."""
    import jax

    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices()
             if "peak_bytes_in_use" in (stats := device.memory_stats() or {})]
    return {"device_memory_gib": max(peaks) / 2**30} if peaks else {}


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in the shortest form."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
