"""Grids over the number of images and of images seen: runs of all lengths share a trunk, and rates are swept first."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.scaling.laws.curves import read_number, read_rows
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Factor, Run
from big_vision_lite.training.schedules import Cooldown, Cosine, Schedule
from big_vision_lite.training.transfer import Branch

UNTUNED = "untuned"
"""A rate that was not chosen by a sweep."""
Recipe = Callable[[int, Schedule], Experiment]
"""The experiment of a number of steps and a schedule."""


def lengths(name: str, recipe: Recipe, seen: Sequence[int], batch_size: int, *, warmup: int, cooldown: float = 0.2,
            factors: Mapping[str, Factor] | None = None, rates: Literal["trunk", "cooldown", "cosine"] = "trunk"
            ) -> tuple[Run, ...]:
    """Runs that see these numbers of images: a trunk at a constant rate, and branches in which it falls.

    Args:
      name: of the runs, but for their length.
      seen: images seen, with repeats.
      warmup: steps in which the rate rises, the same for all lengths.
      cooldown: share of each run in which it falls.
      factors: of all the runs.
      rates: "cooldown": the same without a trunk, each run takes all its steps itself; "cosine": so with the rates of
        a cosine.

    Raises:
      UserError: a run is too short for its warm-up.
    """
    runs, factors = [], dict(factors or {})
    steps = sorted({max(1, round(images / batch_size)) for images in seen})
    falls = {length: max(1, round(cooldown * length)) for length in steps}
    if warmup >= steps[0] - falls[steps[0]]:
        raise UserError(f"{name}: {steps[0]} steps, of which the rate falls in {falls[steps[0]]}; expected more than "
                        f"that and the {warmup} of the warm-up: see more images, or warm up for less")
    branches = {length: length - falls[length] for length in steps}
    share = rates == "trunk" and len(steps) > 1
    if share:
        trunk = recipe(branches[steps[-1]], Cooldown(warmup, length=0))
        runs.append(Run(f"trunk,{name}", dataclasses.replace(trunk, keep=tuple(branches.values())),
                        factors={**factors, "stage": "trunk"}))
    for length in steps:
        experiment = recipe(length, Cosine(warmup) if rates == "cosine" else Cooldown(warmup, length=falls[length]))
        if share:
            experiment = dataclasses.replace(experiment,
                                             branch=Branch(f"{RUN_PREFIX}trunk,{name}", branches[length]))
        runs.append(Run(f"{name},seen={length * batch_size}", experiment, factors=factors))
    return tuple(runs)


class Rates:
    """Learning rates that a sweep has chosen, per network and number of images.

    Args:
      file: results.csv of the sweep: runs that differ in `learning_rate`. Where runs of several lengths were swept, the
        shortest choose, as the longest are too dear to repeat; these only tell whether they would choose alike.

    Raises:
      UserError: the file has no such runs.
    """

    def __init__(self, file: str):
        self.file = file
        values: dict[tuple[int, float], dict[float, dict[float, list[float]]]] = {}  # by depth and images, length, rate
        path = Path(file)
        for line, row in enumerate(read_rows(path), 2):
            if row.get("status") != "done" or row.get("stage") != "pretraining":
                continue
            images, seen, rate, depth = (read_number(path, line, column, row) for column in
                                         ("images", "images_seen", "learning_rate", "depth"))
            score = float(row[row["main_metric"]]) * (1 if row["direction"] == "higher" else -1)
            by_rate = values.setdefault((int(depth), images), {}).setdefault(seen, collections.defaultdict(list))
            by_rate[rate].append(score)
        self._best = {key: {seen: max(rates, key=lambda rate: sum(rates[rate]) / len(rates[rate]))
                            for seen, rates in lengths.items() if len(rates) > 1} for key, lengths in values.items()}
        self._best = {key: best for key, best in self._best.items() if best}
        if not self._best:
            raise UserError(f"{file}: no finished runs that differ in learning_rate; expected the results.csv of a "
                            "sweep")

    def __call__(self, depth: int, images: int) -> float:
        """The rate for a network and a number of images, that of the nearest number which was swept."""
        depths = [key for key in self._best if key[0] == depth]
        if not depths:
            raise UserError(f"{self.file}: no rates for depth {depth}; it has "
                            f"{', '.join(str(each) for each in sorted({key[0] for key in self._best}))}")
        best = self._best[min(depths, key=lambda key: abs(key[1] / images - 1) + abs(images / key[1] - 1))]
        return best[min(best)]

    def checks(self) -> Iterable[tuple[int, float, dict[float, float]]]:
        """Depth, images, and the best rate per number of images seen."""
        return [(depth, images, best) for (depth, images), best in sorted(self._best.items())]
