"""Signals that ask a process to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator


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


@contextlib.contextmanager
def hear_signals(tell: Callable[[int], None]) -> Iterator[None]:
    """Call ``tell`` with each signal that has a handler in Python as it comes in, in another thread: the handler has to
    wait while the main thread is within a library, as when it compiles. Outside the main thread, hear nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while number := reader.recv(1):
            tell(number[0])

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()  # which ends the thread
        thread.join()
        reader.close()
