"""Work on Apache Beam: on this machine, or on any of Beam's runners."""

from __future__ import annotations

import base64
import contextlib
import logging
import pickle
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from big_vision_lite.errors import UserError, first_line, nearest


def require_beam(what: str) -> None:
    """Raises: UserError when Beam is not installed; says that ``what`` needs it."""
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise UserError(f"{what} needs Apache Beam, which is not installed: pip install 'big_vision_lite[beam]'"
                        ) from None


def check_runner(runner: str, beam_options: Sequence[str]) -> None:
    """Raises: UserError when Beam is not installed, or has no such runner."""
    require_beam(f"--runner {runner}")
    _engine(runner, beam_options, 1)


def is_local(runner: str | None) -> bool:
    return runner in (None, "DirectRunner")


def check_shared(folder: str, what: str) -> None:
    """Raises: UserError when Beam would take the name of a folder for a pattern."""
    if set(folder) & set("*?[]"):
        raise UserError(f"{what}: shared={folder!r}; Beam cannot write to a name with any of *?[]; name another folder "
                        "or bucket")


def run_pipeline(build: Callable[[Any, str], Sequence[str]], shared: str, runner: str | None,
                 beam_options: Sequence[str], workers: int) -> dict[str, list[str]]:
    """Run a pipeline and return the lines of text that it has written.

    Args:
      build: adds the stages to a ``beam.Pipeline``. Given a folder, it writes files ``NAME-...`` there, and returns the
        names.
      shared: a folder or bucket that all machines of the runner can write to. What is written is removed at the end.
      runner: None or DirectRunner: this machine.
      beam_options: options of the runner, as on its command line.
      workers: threads on this machine.

    Raises:
      UserError: there is no such runner, or it cannot be started; or as the stages.
    """
    import apache_beam as beam
    from apache_beam.io.filesystems import FileSystems

    results = f"{shared.rstrip('/')}/results.{uuid.uuid4().hex}"
    engine, options = _engine(runner, beam_options, workers)
    with _quiet() if is_local(runner) else contextlib.nullcontext():
        try:
            pipeline = beam.Pipeline(runner=engine, options=options)
            names = build(pipeline, results)
            pipeline.run().wait_until_finish()
            lines: dict[str, list[str]] = {name: [] for name in names}
            for name in names:
                for file in FileSystems.match([f"{results}/{name}-*"])[0].metadata_list:
                    with FileSystems.open(file.path) as opened:
                        lines[name] += opened.read().decode().splitlines()
            return lines
        except Exception as error:  # runners raise types of their own, with the text of our error somewhere inside
            text = f"{type(error).__module__}.{type(error).__name__}: {error}"
            messages = re.findall(r"big_vision_lite\.errors\.\w+: (.+?) \[while running ", text)
            if messages:
                raise UserError(messages[-1]) from error
            if is_local(runner):
                raise
            raise UserError(f"Beam's {runner} failed ({type(error).__name__}: {first_line(error)}); check that it is "
                            "installed and reached from here, and --beam-options") from error
        finally:
            with contextlib.suppress(Exception):  # there may be no results yet
                FileSystems.delete([results])


def on_beam(work: Callable[..., Any], jobs: Sequence[tuple], title: str = "", total: int = 0, *, shared: str,
            runner: str | None = None, beam_options: Sequence[str] = (), workers: int = 1) -> list[Any]:
    """``work(*job)`` for all jobs, in any order; results in the order of jobs. A `shard_writer.Run`, with everything
    after ``total`` given; ``title`` and ``total`` are unused, because runners show their own progress.

    Args:
      work: a function of a module. It leaves large results in files, and does nothing when called again after success:
        runners repeat work that failed.
      shared: as in `run_pipeline`; unused on this machine.

    Raises:
      UserError: as ``work`` and `run_pipeline`.
    """
    if not jobs:
        return []
    require_beam("running on Beam")
    if not is_local(runner):
        check_shared(shared, "Beam")
    import apache_beam as beam

    numbered = [pickle.dumps((number, job)) for number, job in enumerate(jobs)]

    def build(pipeline: Any, results: str) -> Sequence[str]:
        (pipeline | "jobs" >> beam.Create(numbered, reshuffle=False) | "spread" >> beam.Reshuffle()
         | work.__name__.strip("_") >> beam.Map(_work, work) | "write" >> beam.io.WriteToText(f"{results}/done"))
        return ["done"]

    with tempfile.TemporaryDirectory() as temporary:
        place = temporary if is_local(runner) else shared
        lines = run_pipeline(build, place, runner, beam_options, workers)["done"]
    done = dict(pickle.loads(base64.b64decode(line)) for line in lines)
    return [done[number] for number in range(len(jobs))]


def _work(job: bytes, work: Callable[..., Any]) -> str:
    number, arguments = pickle.loads(job)
    return base64.b64encode(pickle.dumps((number, work(*arguments)))).decode()


def _engine(runner: str | None, beam_options: Sequence[str], workers: int) -> tuple[Any, Any]:
    """The runner and its options. "DirectRunner" becomes Beam's portable local runner, because under that name Beam may
    choose one that downloads a program. Raises: UserError when there is no such runner."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners import runner as runners

    if not is_local(runner):
        known = sorted({name.rpartition(".")[2] for name in runners._RUNNER_MAP.values()})
        try:
            return runners.create_runner(runner), PipelineOptions(list(beam_options))
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"Beam has no runner {runner!r}" + nearest(runner, known)) from error
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    mode = "multi_threading" if workers > 1 else "in_memory"  # decoding and comparing release the GIL
    flags = [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}", *beam_options]
    return FnApiRunner(), PipelineOptions(flags)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Beam's log of a failure, which is pages long: on this machine the exception says the same."""
    log = logging.getLogger("apache_beam")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
