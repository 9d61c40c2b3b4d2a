"""What a run writes: metrics.jsonl, TensorBoard, run.json."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypedDict

import big_vision_lite
from big_vision_lite.config import FORMAT, check_format
from big_vision_lite.errors import UserError, writing
from big_vision_lite.evaluation.details import Details
from big_vision_lite.system import cpu
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.cpu import CpuSettings
from big_vision_lite.system.parse import convert, parse_json, read_bytes, read_json
from big_vision_lite.system.paths import RemotePath, upload
from big_vision_lite.training.wandb import WandB

UPLOAD_SECONDS = 60.0
"""Seconds between uploads of the metrics to a bucket; each uploads whole files."""
MAX_SIDE = 1024
"""Maximum side, in pixels, of pictures in TensorBoard's files, which get one per evaluation."""
FLUSH_SECONDS = 120.0
"""Seconds after which TensorBoard sees what was written, at the latest."""


class MetricWriter:
    """Writes each step's metrics as a line of ``metrics.jsonl``, and to TensorBoard.

    The files of a run in a bucket are kept on a local disk and uploaded as a whole: every `UPLOAD_SECONDS`, before each
    checkpoint, and at the end.

    Args:
      start: the step that the run resumes from. Later lines, by a process that died before its next checkpoint, are
        removed, so that each step is there exactly once.
      quiet: write nothing, as in all processes but the first.
      board: another writer that gets the metrics, and is closed with this one.
      confirm: whether a bucket can be written, asked before each upload.
    """

    def __init__(self, workdir: Path, start: int, quiet: bool = False, board: WandB | None = None,
                 confirm: Callable[[], bool] = lambda: True):
        self._quiet, self._confirm = quiet, confirm
        if quiet:
            return
        self._board = board
        self._workdir, self._uploaded_at, self._uploaded_sizes = workdir, time.monotonic(), dict[str, int]()
        self._local = tempfile.TemporaryDirectory() if isinstance(workdir, RemotePath) else None
        folder = Path(self._local.name) if self._local else workdir
        self.path = folder / "metrics.jsonl"
        lines = [line for line in read_metrics(workdir / self.path.name) if line["step"] <= start] if start else []
        with self._writing():
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
            self._file = self.path.open("a")
            self._tensorboard = _EventFile(folder / "tensorboard", start)
        self._upload()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(f"metrics to {str(self.path.parent)!r}", "see that there is space and start the same command "
                       "again, which goes on from the newest checkpoint")

    def write(self, step: int, metrics: dict[str, float | None]) -> None:
        """Raises: UserError when the disk is full or cannot be written, as all that write here."""
        if self._quiet:
            return
        finite = {name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()}
        with self._writing():
            self._file.write(json.dumps({"step": step, **finite}) + "\n")  # JSON knows no NaN
            self._file.flush()
        self.chart(step, metrics)
        if self._local and time.monotonic() - self._uploaded_at > UPLOAD_SECONDS:
            with contextlib.suppress(UserError):  # the bucket may be away for a moment; the next upload has it all
                self._upload()

    def chart(self, step: int, metrics: dict[str, float | None]) -> None:
        """For TensorBoard and the other board only."""
        if self._quiet:
            return
        from tensorboardX.summary import scalar

        with self._writing():
            for name, value in metrics.items():
                if value is not None and math.isfinite(value):
                    self._tensorboard.add(step, summary=scalar(name, value))
        if self._board:
            self._board.write(step, metrics)

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture for TensorBoard only, reduced to at most `MAX_SIDE` pixels."""
        if self._quiet:
            return
        import numpy as np
        from PIL import Image
        from tensorboardX.summary import image as summary_of

        with Image.open(io.BytesIO(path.read_bytes())) as image:
            reduced = image.convert("RGB")
        reduced.thumbnail((MAX_SIDE, MAX_SIDE))
        with self._writing():
            self._tensorboard.add(step, summary=summary_of(name, np.asarray(reduced), dataformats="HWC"))

    def sync(self) -> None:
        """Put all lines on disk: before a checkpoint, so that none is lost of the steps before it.

        Raises:
          UserError: the disk is full, or the upload to a bucket fails.
        """
        if self._quiet:
            return
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._tensorboard.flush()
        self._upload()

    def _upload(self) -> None:
        if self._local is None:
            return
        self._uploaded_at = time.monotonic()
        with self._writing():
            self._tensorboard.flush()
        with writing(f"the metrics to {str(self._workdir)!r}", "see that it can be reached and start the same command "
                     "again"):
            if not self._confirm():
                raise OSError("it cannot be reached")
            upload(Path(self._local.name), self._workdir, self._uploaded_sizes)

    def close(self) -> None:
        if self._quiet:
            return
        try:
            with contextlib.suppress(UserError):  # it would hide why the run ends
                self.sync()
        finally:
            for file in (self._file, self._tensorboard):
                with contextlib.suppress(OSError):  # of a full disk, which was reported
                    file.close()
            if self._board:
                self._board.close()
            if self._local:
                self._local.cleanup()


class _EventFile:
    """A file for TensorBoard. tensorboardX's own writer leaves the disk to a thread: when that is full, the thread ends
    with a traceback, and the run waits for it for ever.

    Args:
      start: the step that the run resumes from; TensorBoard hides what was written before for later ones.
    """

    def __init__(self, folder: Path, start: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.{platform.node()}"))
        self._event, self._flushed_at = Event, time.monotonic()
        self.add(0, file_version="brain.Event:2")
        if start:
            self.add(start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, **content: Any) -> None:
        """Raises: OSError."""
        self._file.write(self._event(wall_time=time.time(), step=step, **content).SerializeToString())
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Raises: OSError."""
        self._file.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Raises: OSError."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without last lines that a crash cut short.

    Raises:
      UserError: the file cannot be read, or a line before others is damaged.
    """
    lines: list[dict[str, Any]] = []
    damaged: UserError | None = None
    for number, text in enumerate(read_bytes(path).splitlines() if path.is_file() else (), 1):
        source, advice = f"line {number} of {path}", "remove it, or bring the file back from a copy"
        try:
            line = parse_json(text, dict[str, Any], source, advice)
            convert(line, dict[str, float | None], source, advice)
            convert(line.get("step"), int, source, advice)
        except UserError as error:
            damaged = damaged or error
        else:
            if damaged:
                raise damaged
            lines.append(line)
    return lines


def last_results(workdir: Path) -> dict[str, float | None]:
    """The metrics of the last evaluation in metrics.jsonl."""
    evaluations = [line for line in read_metrics(workdir / "metrics.jsonl") if any("/" in key for key in line)]
    return {key: value for key, value in evaluations[-1].items() if key != "step"} if evaluations else {}


def write_details(workdir: Path, step: int, details: Mapping[str, Details]) -> None:
    """Write what evaluations say beyond their metrics to evaluations/NAME-STEP-details.json, where there is any."""
    folder = workdir / "evaluations"
    for name, found in details.items():
        if found:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{name}-{step}-details.json", json.dumps(found) + "\n")


def read_details(workdir: Path) -> dict[str, tuple[int, Details]]:
    """The newest of them by the evaluation's name, with their step. Raises: UserError when a file is damaged."""
    newest: dict[str, tuple[int, Path]] = {}
    for path in (workdir / "evaluations").glob("*-details.json"):
        name, _, step = path.name.removesuffix("-details.json").rpartition("-")
        if step.isdigit() and int(step) >= newest.get(name, (0, path))[0]:
            newest[name] = int(step), path
    advice = "remove it: bvl evaluate writes a new one"
    return {name: (step, read_json(path, Details, advice)) for name, (step, path) in sorted(newest.items())}


class _MainMetric(TypedDict):
    name: str
    direction: Literal["higher", "lower"]
    unit: str


class _Run(TypedDict, total=False):
    """What is read of run.json. More is written, for people."""

    step: int
    images: int
    bad_images: int
    wall_seconds: float
    checkpoint_seconds: float
    seconds_to_first_step: float
    time: str
    versions: dict[str, str]
    platform: str
    devices: tuple[str, int]
    cpu_cores: int | None
    cpu: CpuSettings
    git_commit: str | None
    main_metric: _MainMetric
    results: dict[str, float | None]


def read_run(workdir: Path) -> dict[str, Any]:
    """run.json, or an empty dict where there is none yet. Raises: UserError when it is damaged or of another format."""
    path = workdir / "run.json"
    if not path.is_file():
        return {}
    advice = "remove it: the run's command writes a new one"
    run = read_json(path, dict[str, Any], advice)
    check_format(run, path)
    convert(run, _Run, path, advice)
    return run


def earlier_cpu_settings(workdir: Path) -> CpuSettings | None:
    """How a run computed on CPUs so far; None where there is no run or it computed elsewhere. Raises: UserError as
    `read_run`."""
    run = read_run(workdir)
    return convert(run["cpu"], CpuSettings, workdir / "run.json") if "cpu" in run else None


def describe_run(**more: Any) -> dict[str, Any]:
    """Format, versions, machine and commit, for run.json."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
    devices = jax.devices()
    return {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "versions": {"big_vision_lite": big_vision_lite.__version__,  # without metadata where it is not installed
                     **{name: metadata.version(name) for name in packages}},
        "platform": devices[0].platform,
        "devices": [devices[0].device_kind, len(devices)],
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
        **({"cpu": cpu.to_json(cpu.settings(), jax.local_device_count())} if devices[0].platform == "cpu" else {}),
        "git_commit": _git_commit(),
        **more,
    }


def _git_commit() -> str | None:
    """Commit of this package's own checkout, with a + if files are modified; None outside a checkout."""
    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True,
                              timeout=5)

    try:
        if git("ls-files", "--error-unmatch", __file__).returncode:
            return None
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+").stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
