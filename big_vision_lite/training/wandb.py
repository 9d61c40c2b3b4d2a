"""The metrics of a run in Weights & Biases."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import msgspec

from big_vision_lite.errors import UserError, first_line
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.parse import read_json


class _SavedRun(msgspec.Struct):
    id: str


class WandB:
    """A W&B run. A resumed run continues the same one; wandb.json holds its id.

    Args:
      config: the resolved experiment.
      start: the step that the run resumes from. W&B keeps the first values of a step: where a process died before its
        next checkpoint and steps are repeated, it shows those of the dead process.

    Raises:
      UserError: wandb is not installed or does not start.
    """

    def __init__(self, project: str, config: Any, workdir: Path, start: int):
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs wandb, which is not installed; pip install 'big_vision_lite[wandb]', or "
                            "leave --wandb out") from None
        path, run_id = workdir / "wandb.json", uuid.uuid4().hex
        if start and path.is_file():
            run_id = read_json(path, _SavedRun, "remove it, to start another W&B run").id
        try:
            self._run = wandb.init(project=project, name=workdir.name, id=run_id, resume="allow", config=config)
        except Exception as error:  # its own types, and the network's
            raise UserError(f"--wandb {project}: {first_line(error)}; WANDB_MODE=offline keeps the metrics "
                            "here") from error
        write_text(path, json.dumps({"project": project, "id": run_id}) + "\n")

    def write(self, step: int, metrics: dict[str, float | None]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()
