"""Grids over the number of images and of images seen: runs of all lengths share a trunk, and rates are swept first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
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
    """Learning rates that a sweep has chosen, per network, images and images seen.

    Args:
      file: results.csv of the sweep: runs that differ in ``learning_rate``.

    Raises:
      UserError: the file has no such runs.
    """

    def __init__(self, file: str):
        self.file, path = file, Path(file)
        scores: dict[tuple[int, float, float], dict[float, list[float]]] = {}
        for line, row in enumerate(read_rows(path), 2):
            if row.get("status") != "done" or row.get("stage") != "pretraining":
                continue
            depth, images, seen, rate = (read_number(path, line, column, row) for column in
                                         ("depth", "images", "images_seen", "learning_rate"))
            score = float(row[row["main_metric"]]) * (1 if row["direction"] == "higher" else -1)
            scores.setdefault((int(depth), images, seen), {}).setdefault(rate, []).append(score)
        self.best = {key: max(rates, key=lambda rate: sum(rates[rate]) / len(rates[rate]))
                     for key, rates in sorted(scores.items()) if len(rates) > 1}
        """By depth, images and images seen: the rate with the best mean score over seeds."""
        if not self.best:
            raise UserError(f"{file}: no finished runs that differ in learning_rate; expected the results.csv of a "
                            "sweep")

    def __call__(self, depth: int, images: int, seen: int) -> float:
        """The best rate of the nearest number of images seen that was swept; of those, at the nearest number of images:
        the best rate falls with the length of a run, and hardly depends on the images."""
        swept = [(images, seen) for other, images, seen in self.best if other == depth]
        if not swept:
            raise UserError(f"{self.file}: no rates for depth {depth}; it has "
                            f"{', '.join(str(each) for each in sorted({key[0] for key in self.best}))}")
        nearest = min((abs(math.log(their_seen / seen)), abs(math.log(their_images / images)), their_images, their_seen)
                      for their_images, their_seen in swept)
        return self.best[depth, *nearest[2:]]
