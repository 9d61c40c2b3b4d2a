"""What a run writes down: metrics.jsonl, TensorBoard, run.json."""

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
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import big_vision_lite
from big_vision_lite.errors import UserError
from big_vision_lite.remote import RemotePath, upload

EVERY = 60.0
"""Seconds between looks that a bucket gives at a run's metrics; each puts whole files there."""
SIDE = 1024
"""Most pixels of a side of a picture in TensorBoard's files, which hold one for each evaluation."""


class MetricWriter:
    """Lines of ``metrics.jsonl``, each a step and its figures, and the same for TensorBoard.

    Of a run in a bucket they are kept on this machine, and put there as whole files: after `EVERY` seconds, before each
    checkpoint, and at the end.

    Args:
      start: the step that the run continues from. Lines after it were written by a process that died before its
        next checkpoint; they go, so that no step is missing or there twice.
      quiet: write nothing, as all processes of a run but the first.
      board: makes something of ``workdir`` and ``start`` that is told of each line too, as `WandB`.

    Raises:
      UserError: as ``board``.
    """

    def __init__(self, workdir: Path, start: int, quiet: bool = False,
                 board: Callable[[Path, int], Any] | None = None):
        self._quiet = quiet
        if quiet:
            return
        from tensorboardX import SummaryWriter

        self._other = board(workdir, start) if board else None
        self._workdir, self._uploaded, self._sizes = workdir, time.monotonic(), dict[str, int]()
        self._made = tempfile.TemporaryDirectory() if isinstance(workdir, RemotePath) else None
        here = Path(self._made.name) if self._made else workdir
        self.path = here / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir / self.path.name) if line["step"] <= start] if start else []
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(here / "tensorboard"), purge_step=start + 1 if start else None)
        self._upload()

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._quiet:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self.chart(step, values)
        if self._made and time.monotonic() - self._uploaded > EVERY:
            with contextlib.suppress(UserError):  # the bucket may be away for a moment; the next time makes up for it
                self._upload()

    def chart(self, step: int, values: dict[str, float]) -> None:
        """For TensorBoard and the other board alone."""
        if self._quiet:
            return
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)
        if self._other:
            self._other.write(step, values)

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture in a file, for TensorBoard alone, which keeps it at no more than `SIDE` pixels."""
        if self._quiet:
            return
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(path.read_bytes())) as image:
            shown = image.convert("RGB")
        shown.thumbnail((SIDE, SIDE))
        self._board.add_image(name, np.asarray(shown), step, dataformats="HWC")

    def sync(self) -> None:
        """Put all lines on disk: before a checkpoint, so that it never knows more than they do.

        Raises:
          UserError: the bucket does not take them.
        """
        if self._quiet:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()
        self._upload()

    def _upload(self) -> None:
        if self._made is None:
            return
        self._uploaded = time.monotonic()
        self._board.flush()
        try:
            upload(Path(self._made.name), self._workdir, self._sizes)
        except OSError as error:
            raise UserError(f"cannot write the metrics to {str(self._workdir)!r}: {error}; see that it can be reached "
                            "and start the same command again") from None

    def close(self) -> None:
        if self._quiet:
            return
        try:
            with contextlib.suppress(UserError):  # it would hide why the run ends
                self.sync()
        finally:
            self._file.close()
            self._board.close()
            if self._other:
                self._other.close()
            if self._made:
                self._made.cleanup()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut by a crash is left out."""
    lines = []
    if path.is_file():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def read_run(workdir: Path) -> dict[str, Any]:
    """run.json, or an empty dict where there is none yet."""
    path = workdir / "run.json"
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):  # a process may have died while it wrote
        return {}


def describe_run(**more: Any) -> dict[str, Any]:
    """Versions, machine and commit, for run.json."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
    devices = jax.devices()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "versions": {"big_vision_lite": big_vision_lite.__version__,  # also where it is run without being installed
                     **{name: metadata.version(name) for name in packages}},
        "platform": devices[0].platform,
        "devices": [devices[0].device_kind, len(devices)],
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
        "git_commit": _git_commit(),
        **more,
    }


def _git_commit() -> str | None:
    """Commit of this package's own checkout, with a + where files are changed; None outside one."""
    here = Path(__file__).parent
    try:
        run = lambda *a: subprocess.run(["git", "-C", str(here), *a], capture_output=True, text=True, timeout=5)  # noqa: E731
        tracked = run("ls-files", "--error-unmatch", __file__)
        if tracked.returncode:
            return None
        commit = run("rev-parse", "HEAD").stdout.strip()
        return commit + ("+" if run("status", "--porcelain", "--untracked-files=no").stdout.strip() else "")
    except (OSError, subprocess.TimeoutExpired):
        return None
