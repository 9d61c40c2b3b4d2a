"""The best evaluation of a run by its main metric, and the choice of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from big_vision_lite.data.source import DatasetInfo
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.metrics import read_metrics

CheckpointChoice = int | Literal["best", "last"]
"""A step; the best evaluation's, see `chosen_step`; or the newest."""


class MainScore(NamedTuple):
    """What decides between checkpoints: the main metric of the first evaluation."""

    key: str
    """In metrics.jsonl."""
    higher_is_better: bool

    @classmethod
    def of(cls, experiment: Experiment, data: DatasetInfo) -> MainScore | None:
        """None for an experiment without evaluations."""
        if not experiment.evals:
            return None
        metric = experiment.head.main_metric(data)
        return cls(f"{next(iter(experiment.evals))}/{metric.name}", metric.higher_is_better)

    def better(self, value: float | None, than: float | None) -> bool:
        """Whether a score is better than another one; any is better than none."""
        if value is None or than is None:
            return value is not None
        return value > than if self.higher_is_better else value < than

    def best(self, lines: Iterable[Mapping[str, Any]]) -> tuple[int, float] | None:
        """Step and score of the best of the lines of metrics.jsonl; of equal ones the earliest. None without any."""
        best = None
        for line in lines:
            value = line.get(self.key)
            if self.better(value, best and best[1]):
                best = int(line["step"]), float(value)
        return best


def chosen_step(run: Path, choice: CheckpointChoice, checkpoints: Checkpoints, experiment: Experiment,
                data: DatasetInfo) -> int | None:
    """The step of a checkpoint to open; None: the newest.

    Raises:
      UserError: for "best": there is no evaluation, or the best one's checkpoint was not kept.
    """
    if choice == "last":
        return None
    if choice != "best":
        return choice
    score = MainScore.of(experiment, data)
    best = score and score.best(read_metrics(run / "metrics.jsonl"))
    if score is None or best is None:
        raise UserError(f"{str(run)!r} has no evaluations, so that no checkpoint is the best; give 'last' or a step")
    if best[0] not in checkpoints.steps():
        raise UserError(f"{str(run)!r} had its best {score.key}, {best[1]:.4g}, at step {best[0]}, whose checkpoint "
                        f"was not kept; it has {', '.join(map(str, checkpoints.steps()))}: choose one of them, or "
                        "train with --keep-best")
    return best[0]
