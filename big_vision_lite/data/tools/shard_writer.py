"""Writing the shards of a dataset on all cores: one process per shard, each file complete or absent."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import io
import multiprocessing
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import filelock
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from big_vision_lite.data.sources.tfds import without_warnings
from big_vision_lite.errors import UserError
from big_vision_lite.system.cores import usable_cores

Run = Callable[[Callable[..., tuple], Sequence[tuple], str, int], list[tuple]]
"""``work(*job)`` for all jobs, results in their order. With a title and the end of a progress bar, which the first
element of each result advances."""


def on_all_cores_of(processes: int | None) -> Run:
    """`on_all_cores` with a number of processes."""
    return functools.partial(on_all_cores, processes=processes)


def on_all_cores(work: Callable[..., tuple], jobs: Sequence[tuple], title: str, total: int,
                 processes: int | None = None) -> list[tuple]:
    """``work(*job)`` for all jobs, in worker processes if there are several; results in the order of jobs.

    Args:
      work: a function of a module; the first element of its result advances the progress bar.
      total: the end of the progress bar.
      processes: None: one per core.

    Raises:
      UserError: a worker process died.
    """
    workers = min(processes or usable_cores(), len(jobs))
    if workers <= 1:
        pool: concurrent.futures.Executor = concurrent.futures.ThreadPoolExecutor(1)
    else:
        spawn = multiprocessing.get_context("spawn")  # forking a process with threads, as JAX has, may deadlock
        pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=_init_worker)
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    console = Console(stderr=True)
    with pool, Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=total)
        running = [pool.submit(work, *job) for job in jobs]
        try:
            for done in concurrent.futures.as_completed(running):
                progress.advance(bar, done.result()[0])
        except BrokenProcessPool as error:
            raise UserError(f"a worker process died ({title}): either it ran out of memory, or your script lacks "
                            "`if __name__ == '__main__':`") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done.result() for done in running]


def _init_worker() -> None:
    """OpenCV uses one thread, and the process exits when its parent is killed: it would wait for work forever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    cv2.setNumThreads(1)
    threading.Thread(target=watch, daemon=True).start()


PARTIAL = ".partial"
"""How the names of unfinished files end."""


def write_records(path: str, records: Iterator[bytes], options: str = "group_size:1") -> tuple[int, int]:
    """Write an ArrayRecord file, which is renamed to ``path`` when complete.

    Returns:
      (number of records, their size in bytes)
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = f"{path}.{uuid.uuid4().hex[:8]}{PARTIAL}"  # Beam may run the same work twice at once
    writer = ArrayRecordWriter(partial, options)
    count = size = 0
    for record in records:
        writer.write(record)
        count, size = count + 1, size + len(record)
    writer.close()
    os.replace(partial, path)
    return count, size


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS, which prints and warns beside the progress bar."""
    with without_warnings(), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file lock, which the system releases however the process ends.

    Raises:
      RuntimeError: a worker that is starting up, and so runs its parent's script again, asks for the lock. The parent
        holds it and waits for the worker: a deadlock.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError("your script lacks `if __name__ == '__main__':`")
    with filelock.FileLock(path):
        yield
