"""A watchdog ends a run that makes no progress, so that it can be started again.

A process that needs another's part of a sum waits forever when that process, its machine or the network is gone: with
many hosts, most failures look like this.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable

from big_vision_lite.training.distributed import TRY_AGAIN, hard_exit

PATIENCE = 1800.0
"""Default seconds without progress: longer than large programs take to compile."""


class Watchdog:
    """Ends the process, from a thread, after ``seconds`` without a `heartbeat`.

    Args:
      seconds: 0: never.
      saved: tells which checkpoint is kept.
      end: called with the exit code.
    """

    def __init__(self, seconds: float, saved: Callable[[], str], end: Callable[[int], None] = hard_exit):
        self._seconds, self._saved, self._end = seconds, saved, end
        self._last, self._step = time.monotonic(), 0
        self._closed = threading.Event()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._closed.set()

    def heartbeat(self, step: int | None = None) -> None:
        """There is progress: a batch or, with its number, a step."""
        self._last = time.monotonic()
        self._step = self._step if step is None else step

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                print(f"bvl: no progress for {self._seconds:g} s after step {self._step}: a device, the network, the "
                      f"disk or another process hangs; {self._saved()}; the same command goes on from there. Stack of "
                      "each thread:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self._end(TRY_AGAIN)
                return
