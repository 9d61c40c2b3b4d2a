"""The figures of a run in Weights & Biases, for whom a terminal, metrics.jsonl and TensorBoard are not enough."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from big_vision_lite.config import write
from big_vision_lite.errors import UserError


class WandB:
    """A run of a project there. A run that goes on does so there too; the name of its chart is in wandb.json.

    Args:
      config: the resolved experiment.
      start: the step that the run goes on from. W&B keeps what it was told first: of steps after it, that a process
        made which died before its next checkpoint, the figures there stay those of that process.

    Raises:
      UserError: wandb is not installed, or does not come up.
    """

    def __init__(self, project: str, config: Any, workdir: Path, start: int):
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs wandb, which is not installed; pip install 'big_vision_lite[wandb]', or "
                            "leave --wandb out") from None
        path = workdir / "wandb.json"
        try:
            name = json.loads(path.read_text())["id"] if start and path.is_file() else uuid.uuid4().hex
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"cannot read {path}; remove it, to begin another chart") from None
        try:
            self._run = wandb.init(project=project, name=workdir.name, id=name, resume="allow", config=config)
        except Exception as error:  # of its own kinds, and of the network's
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"--wandb {project}: {text[:200]}; WANDB_MODE=offline keeps the figures here") from error
        write(path, json.dumps({"project": project, "id": name}) + "\n")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
