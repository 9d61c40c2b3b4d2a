"""How long making an image holds Python's global interpreter lock: what bounds the threads of one process."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from big_vision_lite.data.cores import usable_cores
from big_vision_lite.data.pipeline import BatchMaker


def lock_held(make: BatchMaker, seconds: float = 2.0) -> dict[str, float] | None:
    """How long making an image holds Python's global interpreter lock; None where less than two cores are.

    A thread makes images beside one that only counts. The operating system says how long the counting thread ran or
    was ready to run; in the rest of the time it waited for the lock. That includes handing the lock over, which
    threads of a pipeline do less often: ``held`` is an upper bound. ``held_alone`` is without it, by the cost of
    handing over in a thread that does nothing else. ``alone`` is the time with nothing beside it; seconds an image.
    ``busy`` is the part of that time in which the thread did not run: where other programs take the cores, it is not
    near 0, and the other figures are too high.
    """
    if usable_cores() < 2:
        return None
    step, count = 0, make.rows

    def images() -> None:
        nonlocal step
        make(step)
        step += 1

    gc.collect()  # an abandoned stream's threads end now
    images()
    start, used = time.perf_counter(), time.thread_time()
    while (alone := time.perf_counter() - start) < seconds / 3 or step == 1:
        images()
    busy, alone = max(1 - (time.thread_time() - used) / alone, 0.0), alone / ((step - 1) * count)
    old = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.0005)  # many handings over a second, so that few seconds suffice
        lost, switches = min(lost_beside(images, seconds / 3) for _ in range(3))  # what else runs only adds to it
        lost_handing, switches_handing = lost_beside(lambda: time.sleep(0), seconds / 3)
    finally:
        sys.setswitchinterval(old)
    handing = lost_handing * switches / max(switches_handing, 1e-9)
    return {"alone": alone, "held": max(lost, 1e-9) / count, "held_alone": max(lost - handing, 0.0) / count,
            "busy": busy}


def lost_beside(work: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Seconds that a counting thread waits for the lock for each call of ``work`` in another, and times that the
    other was put to sleep."""
    calls, slept, stop, failed = 0, 0, False, None

    # On one core the counting thread would be ready to run while it waits for the lock.
    pinned = hasattr(os, "sched_setaffinity")
    allowed = sorted(os.sched_getaffinity(0)) if pinned else []

    def others() -> None:
        nonlocal calls, slept, failed
        try:
            if pinned:
                os.sched_setaffinity(0, allowed[1:])
            before = asleep()
            while not stop:
                work()
                calls += 1
            slept = asleep() - before
        except BaseException as error:
            failed = error

    def asleep() -> int:
        return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nvcsw

    thread = threading.Thread(target=others, daemon=True)
    try:
        if pinned:
            os.sched_setaffinity(0, allowed[:1])  # of this thread alone
        thread.start()
        start, ran = time.perf_counter(), _ran_or_ready()
        while (now := time.perf_counter()) - start < seconds or not (calls or failed):
            pass
        lost = now - start - (_ran_or_ready() - ran)
    finally:
        stop = True
        if pinned:
            os.sched_setaffinity(0, allowed)
    thread.join()
    if failed:
        raise failed
    return lost / calls, slept / calls


def _ran_or_ready() -> float:
    """Seconds that this thread ran or waited for a core only; where the system does not tell, that it ran."""
    try:
        text = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
    except OSError:
        return time.thread_time()
    ran, ready, _ = text.split()
    return (int(ran) + int(ready)) / 1e9
