"""What is known of single runs, from their folders: for the report of a run and for comparisons."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite import config
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.details import Details
from big_vision_lite.experiment import Experiment, read_experiment
from big_vision_lite.heads.head import MainMetric
from big_vision_lite.scaling.report import words
from big_vision_lite.training.metrics import read_details, read_metrics, read_run
from big_vision_lite.training.workdir import read_dataset_info

Curve = tuple[np.ndarray, np.ndarray]
"""Steps, and values at these."""


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """A run, finished or not."""

    folder: Path
    name: str
    """That of its folder."""
    experiment: Experiment
    run: dict[str, Any]
    """run.json; empty before the first checkpoint."""
    classes: tuple[str, ...]
    images: int
    """Of the training data."""
    curves: dict[str, Curve]
    """By metric."""
    details: dict[str, tuple[int, Details]]
    """By evaluation: step and contents."""

    @property
    def main(self) -> str | None:
        """Name of the main metric of the first evaluation, if the run has one."""
        main = self.run.get("main_metric")
        names = [f"{name}/{main['name']}" for name in self.experiment.evals] if main else []
        return next((name for name in names if name in self.curves), None)

    @property
    def higher_is_better(self) -> bool:
        return self.run.get("main_metric", {}).get("direction") != "lower"

    @property
    def step(self) -> int:
        return int(max((curve[0][-1] for curve in self.curves.values()), default=0))

    @property
    def images_seen(self) -> int:
        return self.step * self.experiment.train.batch_size

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        return float(self.curves[name][1][-1]) if name in self.curves else None

    def best(self, name: str) -> tuple[int, float]:
        """Step and value of the best evaluation by the main metric's direction."""
        steps, values = self.curves[name]
        at = int(values.argmax() if self.higher_is_better else values.argmin())
        return int(steps[at]), float(values[at])

    @property
    def chance(self) -> float | None:
        """The main metric by guessing, where it is known."""
        if self.main is None:
            return None
        if self.main.endswith("/top1"):
            return 1 / len(self.classes)
        return self.last(f"{self.main}_chance")

    @property
    def machine(self) -> str:
        kind, count = self.run.get("devices", ("unknown", 1))
        cores = self.run.get("cpu_cores")
        return f"{count} x {kind}" + (f", {cores} cores" if cores else "")


def read_facts(folder: Path, imports: Sequence[str] = ()) -> RunFacts:
    """Raises: UserError when the folder holds no run, or a file of it cannot be read."""
    experiment = read_experiment(folder / "config.json", imports)
    info = read_dataset_info(folder)
    values: dict[str, dict[int, float]] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        for name, value in line.items():
            if name != "step" and value is not None and math.isfinite(value):
                values.setdefault(name, {})[line["step"]] = float(value)
    curves = {name: (np.array(list(points), int), np.array(list(points.values()))) for name, points in values.items()}
    return RunFacts(folder, folder.resolve().name, experiment, read_run(folder), info.classes, len(info), curves,
                    read_details(folder))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a single run, not of a study."""
    return (folder / "config.json").is_file() and not (folder / "results.csv").is_file()


def fields(experiment: Experiment) -> dict[str, str]:
    """The experiment's fields by their path, such as "optimizer.learning_rate", as text."""
    return dict(_flat(config.to_json(experiment), ""))


def _flat(value: Any, at: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if kind := value.get("class"):
            yield at or "experiment", str(kind).rpartition(":")[2]
        for key, content in value.items():
            if key != "class":
                yield from _flat(content, f"{at}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{at}[{number}]")
    else:
        yield at, "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def changed_fields(experiment: Experiment) -> list[tuple[str, str]]:
    """The fields that are not at their defaults: what a recipe decides."""
    def changed(value: Any, at: str) -> Iterator[tuple[str, str]]:
        for field in dataclasses.fields(value):
            content, path = getattr(value, field.name), f"{at}.{field.name}".lstrip(".")
            default = field.default_factory() if callable(field.default_factory) else field.default
            if content == default:
                continue
            if dataclasses.is_dataclass(content):
                yield path, type(content).__name__
                yield from changed(content, path)
            elif isinstance(content, dict):
                for key, item in content.items():
                    if dataclasses.is_dataclass(item):
                        yield f"{path}.{key}", type(item).__name__
                        yield from changed(item, f"{path}.{key}")
                    else:
                        yield f"{path}.{key}", str(item)
            else:
                yield path, str(content)

    return list(changed(experiment, ""))


def headline(facts: RunFacts) -> str:
    """The final score in words."""
    name = facts.main
    if name is None:
        raise UserError(f"{facts.folder}: no evaluation yet")
    value, chance = facts.last(name), facts.chance
    images = facts.last(f"{name.rpartition('/')[0]}/images")
    main = MainMetric(name, facts.higher_is_better, facts.run["main_metric"].get("unit", ""))
    return (f"{words.title(words.label(main))}: {value:.4g}"
            + (f" on {images:,.0f} images" if images else "")
            + (f" (by chance {chance:.2g})" if chance is not None else "")
            + f", after {facts.step:,} steps of {facts.experiment.train.batch_size}: "
            + f"{facts.images_seen / max(facts.images, 1):.3g} passes over {facts.images:,} images")
