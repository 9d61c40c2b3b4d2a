"""Run directory: ownership check, and files written before step 0."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from big_vision_lite import config
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.source import Dataset, SavedDatasetInfo
from big_vision_lite.errors import UserError, writing
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.ownership import Ownership, own
from big_vision_lite.system.parse import read_json
from big_vision_lite.system.paths import RemotePath, as_path, scheme
from big_vision_lite.system.signals import Stopped
from big_vision_lite.training.distributed import barrier, broadcast_from_0, hard_exit, is_primary

PATIENCE = 300.0
"""Seconds that a run waits for its folder when that has disappeared."""
STOP_PATIENCE = 10.0
"""The same once a signal asks the run to stop: whoever sent it soon kills."""


def run_folder(workdir: Path) -> Path:
    """The path of a run's folder. Raises: UserError for a URL other than gs://."""
    workdir = as_path(workdir)
    if not isinstance(workdir, RemotePath) and (prefix := scheme(workdir)):
        raise UserError(f"--workdir {prefix}/...; expected a folder on a disk, or gs://BUCKET/FOLDER")
    return workdir


def _writable(workdir: Path) -> contextlib.AbstractContextManager[None]:
    return writing(f"to the workdir {str(workdir)!r}", "choose another --workdir")


class OwnedWorkdir:
    """A run's folder, to which no other run writes meanwhile. Of several processes, process 0 owns it for all.

    Args:
      patience: seconds to wait for another owner to end.

    Raises:
      UserError: another process owns the folder, or it cannot be written.
    """

    def __init__(self, workdir: Path, patience: float = 0):
        self._path = workdir
        self._owner: Ownership | None = None
        refusal: UserError | None = None
        if is_primary():
            try:
                with _writable(workdir):
                    self._owner = own(workdir, patience, _end)
            except UserError as error:
                refusal = error
        if not broadcast_from_0(refusal is None):
            raise refusal or UserError(f"process 0 cannot use {str(workdir)!r}; its output says why")

    def __enter__(self) -> OwnedWorkdir:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._owner:
            self._owner.release()

    @property
    def taken_over(self) -> str:
        """From whom and why, or ""."""
        return self._owner.taken_over if self._owner else ""

    def confirm(self) -> bool:
        """To be called before writing: whether the folder can be reached. Ends the process if it is another run's."""
        return self._owner is None or self._owner.confirm()

    def check(self) -> None:
        """As `confirm`, before each line of metrics: in a bucket, these are written to a local disk first."""
        if not isinstance(self._path, RemotePath):
            self.confirm()

    def wait(self, say: Callable[[str], None], received: Sequence[int] = ()) -> None:
        """Return once the folder is there, and still ours: a network disk may be away for a moment, and what is written
        to its place meanwhile would be lost.

        Args:
          received: the signals that ask the run to stop, as they come in.

        Raises:
          UserError: it is not back after `PATIENCE` seconds.
          Stopped: it is not back `STOP_PATIENCE` seconds after a signal.
        """
        deadline = math.inf
        while not self._is_there():
            now = time.monotonic()
            if deadline == math.inf:
                say(f"{self._path} is not there any more; waiting for it")
            deadline = min(deadline, now + (STOP_PATIENCE if received else PATIENCE))
            if now >= deadline and received:
                raise Stopped(received[0], f"while the workdir {str(self._path)!r} was away, so that the steps since "
                              "the last checkpoint are lost; bring it back: the same command goes on from there")
            if now >= deadline:
                raise UserError(f"the workdir {str(self._path)!r} has been away for {PATIENCE:.0f} s; bring it back "
                                "and start the same command again, which goes on from what was saved there")
            time.sleep(0.2)

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):  # a bucket that cannot be reached
            return (self._path / "config.json").exists() and self.confirm()
        return False


def _end(message: str) -> NoReturn:
    print(f"bvl: {message}", file=sys.stderr)
    hard_exit(2)


def open_workdir(workdir: Path, experiment: Experiment) -> Any:
    """Create the folder of a run, or check that it belongs to this experiment. Returns the resolved config as JSON
    values.

    Raises:
      UserError: the folder cannot be written, or holds a run of another experiment (names the fields) or format.
    """
    resolved = config.to_json(experiment)
    path = workdir / "config.json"
    with _writable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists() and has_checkpoint(workdir):
            saved = config.with_defaults(config.read_json(path))
            differences = config.differences(saved, resolved, (*WITHOUT_EFFECT, "evals", "probes"))
            if differences:
                raise UserError(f"{str(workdir)!r} holds a run of another experiment: {'; '.join(differences[:4])}"
                                + (f"; and {len(differences) - 4} more" if len(differences) > 4 else "")
                                + "; choose another --workdir, or remove that one")
        if is_primary():
            write_text(path, config.dumps(experiment))
        barrier("the run's folder is made")
        if not path.exists():
            raise UserError(f"{str(workdir)!r} is not the folder that process 0 has written to; give a --workdir on a "
                            "disk that all machines share")
    return resolved


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is anything to lose: a run that died before its first checkpoint leaves the folder free."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def save_dataset_info(workdir: Path, data: Dataset) -> dict[str, Any]:
    """Write the training data's description and manifest to data.json, and return the manifest.

    Raises:
      UserError: the folder's run was trained on other data.
    """
    described = manifest(data)
    if (workdir / "data.json").exists() and has_checkpoint(workdir):
        old = read_dataset_info(workdir)
        if (old.fingerprint, old.sha256) != (data.fingerprint, described["sha256"]):
            same_ids = ("the ids are the same, but labels, or sizes or times of files are not; if files were copied, "
                        f"touched or mended, remove {workdir / 'data.json'} and start the same command again, else ")
            raise UserError(f"{str(workdir)!r} was trained on other data: {len(old):,} images ({old.fingerprint}, "
                            f"{old.sha256[:8]}), now {len(data):,} ({data.fingerprint}, {described['sha256'][:8]}); "
                            + (same_ids if old.sha256 == described["sha256"] else "")
                            + "choose another --workdir, or bring the data back")
    elif is_primary():
        write_dataset_info(workdir, {"multi_label": data.multi_label, "fingerprint": data.fingerprint, **described,
                                     "classes": list(data.classes)})
    return described


def write_dataset_info(workdir: Path, info: dict[str, Any]) -> None:
    """Write data.json, as `read_dataset_info` reads it."""
    write_text(workdir / "data.json", json.dumps(info, indent=1) + "\n")


def read_dataset_info(workdir: Path) -> SavedDatasetInfo:
    """Raises: UserError when the folder has no (valid) data.json."""
    return read_json(workdir / "data.json", SavedDatasetInfo, "a run folder holds one")
