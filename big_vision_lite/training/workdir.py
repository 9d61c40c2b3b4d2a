"""The folder of a run: who it belongs to, and what it must be told before a step is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from big_vision_lite import config
from big_vision_lite.data.source import Described, Description
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment


def claim(workdir: Path, experiment: Experiment) -> Any:
    """Make the folder of a run, or check that it is this experiment's. Returns the resolved config as JSON values.

    Raises:
      UserError: the folder cannot be written, or holds a run of another experiment; names the fields.
    """
    resolved = config.to_json(experiment)
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists() and _has_checkpoint(workdir):
            different = config.differences(json.loads(path.read_text()), resolved, WITHOUT_EFFECT)
            if different:
                raise UserError(f"{str(workdir)!r} holds a run of another experiment: {'; '.join(different[:4])}"
                                + (f"; and {len(different) - 4} more" if len(different) > 4 else "")
                                + "; choose another --workdir, or remove that one")
        config.save(experiment, path)
    except OSError as error:
        raise UserError(f"cannot write to the workdir {str(workdir)!r}: {error.strerror or error}; choose another "
                        "--workdir") from None
    except json.JSONDecodeError:
        raise UserError(f"{path} is not valid JSON; remove the folder or choose another --workdir") from None
    return resolved


def _has_checkpoint(workdir: Path) -> bool:
    """Whether there is anything to lose: a run that died before its first checkpoint leaves the folder free."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def keep_description(workdir: Path, data: Described) -> None:
    """Write down what the run learns from. Raises: UserError when the folder's run learnt from other data."""
    path = workdir / "data.json"
    if path.exists() and _has_checkpoint(workdir):
        old = read_description(workdir)
        if old.fingerprint != data.fingerprint:
            raise UserError(f"{str(workdir)!r} was trained on other data: {len(old):,} images ({old.fingerprint}), now "
                            f"{len(data):,} ({data.fingerprint}); choose another --workdir, or bring the data back")
        return
    path.write_text(json.dumps({"images": len(data), "multi_label": data.multi_label,
                                "fingerprint": data.fingerprint, "classes": list(data.classes)}, indent=1) + "\n")


def read_description(workdir: Path) -> Description:
    """Raises: UserError when the folder has no (valid) data.json."""
    path = workdir / "data.json"
    try:
        values = json.loads(path.read_text())
        return Description(tuple(values["classes"]), values["multi_label"], values["fingerprint"], values["images"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; a run folder holds one") from None
