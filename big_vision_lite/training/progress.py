"""A run's display in the terminal, and its clock."""

from __future__ import annotations

import time
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


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


class Display:
    """A live line on a terminal; elsewhere one plain line per report.

    Args:
      start: steps done before.
      quiet: print nothing.
    """

    def __init__(self, steps: int, start: int, quiet: bool = False):
        self.console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self.steps = steps
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(24), TextColumn("{task.fields[summary]}"),
                   TimeElapsedColumn())
        self._progress = Progress(*columns, console=self.console, transient=True,
                                  disable=not self.console.is_terminal)
        self._task = self._progress.add_task("", total=steps, completed=start, summary="compiling")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, markup=False)

    def step(self, step: int) -> None:
        """Steps are done; the first one also shows that the program is compiled."""
        compiled = {"summary": "training"} if self._progress.tasks[0].fields["summary"] == "compiling" else {}
        self._progress.update(self._task, completed=step, **compiled)

    def report(self, step: int, metrics: dict[str, float], seconds_left: float) -> None:
        """Show the latest metrics: loss, images/s, share of time waiting for data."""
        summary = (f"loss {metrics['loss']:.4g}  {metrics['images_per_second']:,.0f} images/s  "
                   f"data wait {metrics['data_wait']:.0%}  {duration(seconds_left)} left")
        if self.console.is_terminal:
            self._progress.update(self._task, completed=step, summary=summary)
        else:
            self.say(f"step {step}/{self.steps}  {summary}")


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
