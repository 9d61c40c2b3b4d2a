"""Runs of several lengths that share their first steps: those of a trunk, of which each is a branch.

At a constant rate a run does not depend on its length, so one run at that rate serves all lengths; each then takes only
the steps in which its own rate falls (Zhai et al. 2022, section 3.4; Hägele et al. 2024).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite import config
from big_vision_lite.data.source import Dataset
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.schedules import Schedule
from big_vision_lite.training.transfer import Branch
from big_vision_lite.training.workdir import read_dataset_info

ITS_OWN = ("steps", "optimizer.schedule", "evals", "probes", "transfer.init", *WITHOUT_EFFECT)
"""Fields in which a branch may differ from its trunk. The rates up to the step of the branch must be equal; what the
trunk started from may have been moved."""


def trunk_state(experiment: Experiment, branch: Branch, data: Dataset, like: Any) -> tuple[int, Any, dict[str, int]]:
    """The step, state and position in the data with which a branch begins.

    Args:
      data: of the branch.
      like: shapes of the state.

    Raises:
      UserError: there is no such run or checkpoint; or its recipe, data or rates are not those of the branch.
    """
    folder = as_path(Path(branch.trunk).expanduser())
    what = f"Branch.trunk={branch.trunk!r}"
    saved = config.with_defaults(config.read_json(folder / "config.json"))
    differences = config.differences(saved, config.to_json(experiment), ITS_OWN)
    if differences:
        raise UserError(f"{what} has another recipe: {'; '.join(differences[:4])}; a branch and its trunk differ in "
                        "steps and schedule only")
    if (fingerprint := read_dataset_info(folder).fingerprint) != data.fingerprint:
        raise UserError(f"{what} was trained on other data: {fingerprint}, this run has {data.fingerprint}")
    schedule = config.from_json(saved["optimizer"]["schedule"], (), folder / "config.json")
    _check_rates(what, schedule, saved["steps"], experiment, branch.step)
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        state, position = checkpoints.restore(checkpoints.existing(branch.step), like)
    return branch.step, state, position


def _check_rates(what: str, schedule: Schedule, steps: int, experiment: Experiment, until: int) -> None:
    """Raises: UserError when the rates of a trunk and of a branch differ before step ``until``."""
    taken = np.arange(until)
    theirs, ours = (np.broadcast_to(np.asarray(of.build(length)(taken), np.float32), taken.shape)
                    for of, length in ((schedule, steps), (experiment.optimizer.schedule, experiment.steps)))
    other = np.flatnonzero(np.abs(theirs - ours) > 1e-6)
    if other.size:
        step = int(other[0])
        raise UserError(f"{what} has {theirs[step]:.6g} of its peak rate at step {step}, this run {ours[step]:.6g}; "
                        f"expected equal rates up to step {until}: give warm-up as a number of steps, and let the rate "
                        "fall after it")
