"""A profile of some steps of a run, for TensorBoard or Perfetto."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax

from big_vision_lite.errors import UserError
from big_vision_lite.system.paths import RemotePath, upload
from big_vision_lite.training.distributed import is_primary


class Profiler:
    """Records what host and devices do during some steps, in process 0.

    Args:
      steps: ``FIRST:LAST``, both included and counted from 1; None: record nothing.
      folder: where the profile goes.

    Raises:
      UserError: ``steps`` has another form.
    """

    def __init__(self, steps: str | None, folder: Path):
        first, colon, last = (steps or "0:0").partition(":")
        if not (colon and first.isdecimal() and last.isdecimal()) or (
                steps is not None and not 0 < int(first) <= int(last)):
            raise UserError(f"--profile {steps}; expected FIRST:LAST, such as 10:15, counted from 1")
        self._first, self._last = (int(first), int(last)) if is_primary() else (0, 0)
        self._folder, self._running = folder, False
        self._local: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> Profiler:
        return self

    def before(self, first: int, last: int) -> None:
        """To be called before steps ``first`` to ``last`` are dispatched."""
        if first <= self._first <= last:
            if isinstance(self._folder, RemotePath):
                self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name if self._local else self._folder)
            self._running = True

    def after(self, step: int, outputs: object) -> None:
        """To be called when steps up to ``step`` are dispatched; ``outputs``: arrays that they compute."""
        if self._running and step >= self._last:
            jax.block_until_ready(outputs)
            self.__exit__()

    def __exit__(self, *unused: object) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if self._local:
                upload(Path(self._local.name), self._folder)
                self._local.cleanup()
