"""Signals that ask a process to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(Exception):
    """A signal stopped the run. ``code``: the exit code by convention."""

    def __init__(self, signum: int, where: str):
        super().__init__(f"stopped by {signal.Signals(signum).name} {where}")
        self.code = 128 + signum


@contextlib.contextmanager
def collect_signals(*numbers: int, once: bool = False, forward_as: int | None = None) -> Iterator[list[int]]:
    """Collect these signals instead of dying of them; outside the main thread, collect nothing.

    Args:
      once: the first one restores the old handlers, so that a second one acts at once.
      forward_as: a signal to raise for each.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def collect(signum: int, frame: object) -> None:
        received.append(signum)
        if once:
            restore()
        if forward_as is not None:
            signal.raise_signal(forward_as)

    handlers = {number: signal.signal(number, collect) for number in numbers}
    try:
        yield received
    finally:
        restore()
