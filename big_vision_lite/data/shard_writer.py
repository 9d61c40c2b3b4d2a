"""Writing the files of a data set on all cores: each shard by one process, complete or not there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
from absl import logging
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from big_vision_lite.data.cores import usable_cores
from big_vision_lite.errors import UserError


def on_all_cores(work: Callable[..., tuple], jobs: Sequence[tuple], title: str, total: int,
                 processes: int | None = None) -> list[tuple]:
    """``work(*job)`` of all jobs, in processes of their own when there are several; results in the order of jobs.

    Args:
      work: of a module; the first thing it returns is by how much the progress bar moves.
      total: the bar's end.

    Raises:
      UserError: a process died.
    """
    workers = min(processes or usable_cores(), len(jobs))
    if workers <= 1:
        pool: concurrent.futures.Executor = concurrent.futures.ThreadPoolExecutor(1)
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads, as JAX has, may hang
        pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=_leave_with_parent)
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    console = Console(stderr=True)
    with pool, Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=total)
        running = [pool.submit(work, *job) for job in jobs]
        try:
            for done in concurrent.futures.as_completed(running):
                progress.advance(bar, done.result()[0])
        except BrokenProcessPool as error:
            raise UserError(f"a process died ({title}): either memory ran out, or your script has no"
                            " `if __name__ == '__main__':` around what it does") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done.result() for done in running]


def _leave_with_parent() -> None:
    """Ends this process when its parent is killed; it would wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    cv2.setNumThreads(1)
    threading.Thread(target=watch, daemon=True).start()


def write_records(path: str, records: Iterator[bytes], options: str = "group_size:1") -> tuple[int, int]:
    """Write an ArrayRecord file under another name that becomes ``path`` when it is complete.

    Returns:
      How many records it has, and their size in bytes.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = f"{path}.partial"
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
    """TFDS tells on stdout and in warnings what it does; the progress bar says enough."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file's lock, which the system releases when the process ends in whatever way.

    Raises:
      RuntimeError: a worker came here while it was being started, because it runs the script of its parent again. The
        parent has the lock and waits for the worker: both would wait for ever.
    """
    import fcntl

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError("your script has no `if __name__ == '__main__':` around what it does")

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
