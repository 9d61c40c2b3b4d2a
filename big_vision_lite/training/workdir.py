"""Run directory: ownership check, and files written before step 0."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from big_vision_lite import config
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.source import Dataset, SavedDatasetInfo
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.paths import RemotePath, scheme
from big_vision_lite.training.distributed import barrier, is_primary

PATIENCE = 300.0
"""Seconds that a run waits for its folder when that has disappeared."""


def open_workdir(workdir: Path, experiment: Experiment) -> Any:
    """Create the folder of a run, or check that it belongs to this experiment. Returns the resolved config as JSON
    values.

    Raises:
      UserError: the folder cannot be written, or holds a run of another experiment (names the fields) or format.
    """
    if not isinstance(workdir, RemotePath) and (prefix := scheme(workdir)):
        raise UserError(f"--workdir {prefix}/...; expected a folder on a disk, or gs://BUCKET/FOLDER")
    resolved = config.to_json(experiment)
    path = workdir / "config.json"
    try:
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
    except OSError as error:
        raise UserError(f"cannot write to the workdir {str(workdir)!r}: {error.strerror or error}; choose another "
                        "--workdir") from None
    return resolved


def wait_until_there(workdir: Path, say: Callable[[str], None]) -> None:
    """Return once the run's folder is there: a network disk may be away for a moment, and what is written to its place
    meanwhile would be lost.

    Raises:
      UserError: it is not back after `PATIENCE` seconds.
    """
    path, began = workdir / "config.json", time.monotonic()
    if _is_there(path):
        return
    say(f"{workdir} is not there any more; waiting for it")
    while not _is_there(path):
        if time.monotonic() - began > PATIENCE:
            raise UserError(f"the workdir {str(workdir)!r} has been away for {PATIENCE:.0f} s; bring it back and start "
                            "the same command again, which goes on from what was saved there")
        time.sleep(0.2)


def _is_there(path: Path) -> bool:
    with contextlib.suppress(OSError):  # a bucket that cannot be reached
        return path.exists()
    return False


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
            raise UserError(f"{str(workdir)!r} was trained on other data: {len(old):,} images ({old.fingerprint}, "
                            f"{old.sha256[:8]}), now {len(data):,} ({data.fingerprint}, {described['sha256'][:8]}); "
                            "choose another --workdir, or bring the data back")
    elif is_primary():
        write_dataset_info(workdir, {"multi_label": data.multi_label, "fingerprint": data.fingerprint, **described,
                                     "classes": list(data.classes)})
    return described


def write_dataset_info(workdir: Path, info: dict[str, Any]) -> None:
    """Write data.json, as `read_dataset_info` reads it."""
    write_text(workdir / "data.json", json.dumps(info, indent=1) + "\n")


def read_dataset_info(workdir: Path) -> SavedDatasetInfo:
    """Raises: UserError when the folder has no (valid) data.json."""
    path = workdir / "data.json"
    try:
        values = json.loads(path.read_text())
        return SavedDatasetInfo(tuple(values["classes"]), values["multi_label"], values["fingerprint"],
                                values["images"], values["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; a run folder holds one") from None
