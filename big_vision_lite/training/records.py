"""What a run writes down: metrics.jsonl, TensorBoard, run.json."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any


class MetricWriter:
    """Lines of ``metrics.jsonl``, each a step and its figures, and the same for TensorBoard.

    Args:
      start: the step that the run continues from. Lines after it were written by a process that died before its
        next checkpoint; they go, so that no step is missing or there twice.
      quiet: write nothing, as all processes of a run but the first.
    """

    def __init__(self, workdir: Path, start: int, quiet: bool = False):
        self._quiet = quiet
        if quiet:
            return
        from tensorboardX import SummaryWriter

        self.path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= start] if start else []
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._quiet:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self.chart(step, values)

    def chart(self, step: int, values: dict[str, float]) -> None:
        """For TensorBoard alone."""
        for name, value in values.items():
            if not self._quiet and math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Put all lines on disk: before a checkpoint, so that it never knows more than they do."""
        if self._quiet:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        if self._quiet:
            return
        self.sync()
        self._file.close()
        self._board.close()


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
        "versions": {"big_vision_lite": metadata.version("big_vision_lite"),
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
