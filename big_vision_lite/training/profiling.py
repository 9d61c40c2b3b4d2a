"""A profile of some of a run's steps, for TensorBoard or Perfetto, by process 0."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax

from big_vision_lite.errors import UserError
from big_vision_lite.remote import RemotePath, upload


class Profiler:
    """Records what host and devices do from the first to the last of some steps.

    Args:
      steps: ``FIRST:LAST``, both included and counted from 1; None: record nothing, as all processes but the first.
      folder: where it goes.

    Raises:
      UserError: ``steps`` is something else.
    """

    def __init__(self, steps: str | None, folder: Path):
        first, colon, last = (steps or "0:0").partition(":")
        if not (colon and first.isdecimal() and last.isdecimal()) or (
                steps is not None and not 0 < int(first) <= int(last)):
            raise UserError(f"--profile {steps}; expected FIRST:LAST, such as 10:15, steps that are counted from 1")
        self._first, self._last = (int(first), int(last)) if jax.process_index() == 0 else (0, 0)
        self._folder, self._running = folder, False
        self._made: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> Profiler:
        return self

    def before(self, step: int) -> None:
        """Step ``step`` is about to be given to the devices."""
        if step == self._first:
            if isinstance(self._folder, RemotePath):
                self._made = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._made.name if self._made else self._folder)
            self._running = True

    def after(self, step: int, figures: object) -> None:
        """Step ``step`` was given to the devices, which will make ``figures`` of it."""
        if self._running and step == self._last:
            jax.block_until_ready(figures)
            self.__exit__()

    def __exit__(self, *unused: object) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if self._made:
                upload(Path(self._made.name), self._folder)
                self._made.cleanup()
