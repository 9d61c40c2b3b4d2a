"""A watchdog: a run that stands still for too long says where, and ends, so that it can be started again.

A process that waits for another one's share of a sum waits for ever when that process, its machine or the network
between them is gone; on many hosts this is how most failures look.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable

from big_vision_lite.training.distributed import TRY_AGAIN, leave

PATIENCE = 1800.0
"""Seconds that a run may stand still, where nobody says otherwise: longer than large programs take to compile."""


class Watchdog:
    """Ends the process when nobody has called `beat` for ``seconds``, from a thread of its own.

    Args:
      seconds: 0: watch nothing.
      last_words: what to say about what is kept.
      end: called with an exit code when time is over.
    """

    def __init__(self, seconds: float, last_words: Callable[[], str], end: Callable[[int], None] = leave):
        self._seconds, self._last_words, self._end = seconds, last_words, end
        self._last, self._step = time.monotonic(), 0
        self._closed = threading.Event()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._closed.set()

    def beat(self, step: int | None = None) -> None:
        """Something was done: a batch was made or, where it is given, a step."""
        self._last = time.monotonic()
        self._step = self._step if step is None else step

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                print(f"bvl: nothing has moved for {self._seconds:g} s after step {self._step}: a device, the network, "
                      f"the disk or another process hangs; {self._last_words()}; the same command goes on from there. "
                      "Where each thread stands:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self._end(TRY_AGAIN)
                return
