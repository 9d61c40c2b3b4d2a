"""The folder of a run: who it belongs to, and what it must be told before a step is taken."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from big_vision_lite import config
from big_vision_lite.data.manifest import manifest
from big_vision_lite.data.source import Description, Records
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment
from big_vision_lite.remote import RemotePath, scheme
from big_vision_lite.training.distributed import is_first, meet

PATIENCE = 300.0
"""Seconds that a run waits for its folder when that is not there."""


def claim(workdir: Path, experiment: Experiment) -> Any:
    """Make the folder of a run, or check that it is this experiment's. Returns the resolved config as JSON values.

    Raises:
      UserError: the folder cannot be written, or holds a run of another experiment; names the fields.
    """
    if not isinstance(workdir, RemotePath) and (found := scheme(workdir)):
        raise UserError(f"--workdir {found}/...; expected a folder on a disk, or gs://BUCKET/FOLDER")
    resolved = config.to_json(experiment)
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists() and _has_checkpoint(workdir):
            different = config.differences(config.with_defaults(json.loads(path.read_text())), resolved, WITHOUT_EFFECT)
            if different:
                raise UserError(f"{str(workdir)!r} holds a run of another experiment: {'; '.join(different[:4])}"
                                + (f"; and {len(different) - 4} more" if len(different) > 4 else "")
                                + "; choose another --workdir, or remove that one")
        if is_first():
            config.save(experiment, path)
        meet("the run's folder is made")
        if not path.exists():
            raise UserError(f"{str(workdir)!r} is another folder here than where process 0 is; give a --workdir on a "
                            "disk that all machines share")
    except OSError as error:
        raise UserError(f"cannot write to the workdir {str(workdir)!r}: {error.strerror or error}; choose another "
                        "--workdir") from None
    except json.JSONDecodeError:
        raise UserError(f"{path} is not valid JSON; remove the folder or choose another --workdir") from None
    return resolved


def wait_until_there(workdir: Path, say: Callable[[str], None]) -> None:
    """Return once the folder of a run is there: a network disk may be away for a moment, and what was written to its
    place meanwhile would be lost.

    Raises:
      UserError: it is still not there after `PATIENCE` seconds.
    """
    path, began = workdir / "config.json", time.monotonic()
    if _there(path):
        return
    say(f"{workdir} is not there any more; waiting for it")
    while not _there(path):
        if time.monotonic() - began > PATIENCE:
            raise UserError(f"the workdir {str(workdir)!r} is not there any more, for {PATIENCE:.0f} s now; bring it "
                            "back and start the same command again, which goes on from what was saved there")
        time.sleep(0.2)


def _there(path: Path) -> bool:
    with contextlib.suppress(OSError):  # a bucket that cannot be asked
        return path.exists()
    return False


def _has_checkpoint(workdir: Path) -> bool:
    """Whether there is anything to lose: a run that died before its first checkpoint leaves the folder free."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def keep_description(workdir: Path, data: Records) -> dict:
    """Write down what the run learns from: data.json, the records' description and manifest, which is returned.

    Raises:
      UserError: the folder's run learnt from other data.
    """
    path, found = workdir / "data.json", manifest(data)
    if path.exists() and _has_checkpoint(workdir):
        old = read_description(workdir)
        if (old.fingerprint, old.sha256) != (data.fingerprint, found["sha256"]):
            raise UserError(f"{str(workdir)!r} was trained on other data: {len(old):,} images ({old.fingerprint}, "
                            f"{old.sha256[:8]}), now {len(data):,} ({data.fingerprint}, {found['sha256'][:8]}); choose "
                            "another --workdir, or bring the data back")
    elif is_first():
        write_description(workdir, {"multi_label": data.multi_label, "fingerprint": data.fingerprint, **found,
                                    "classes": list(data.classes)})
    return found


def write_description(workdir: Path, values: dict[str, Any]) -> None:
    """data.json, as `read_description` reads it."""
    config.write(workdir / "data.json", json.dumps(values, indent=1) + "\n")


def read_description(workdir: Path) -> Description:
    """Raises: UserError when the folder has no (valid) data.json."""
    path = workdir / "data.json"
    try:
        values = json.loads(path.read_text())
        return Description(tuple(values["classes"]), values["multi_label"], values["fingerprint"], values["images"],
                           values["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; a run folder holds one") from None
