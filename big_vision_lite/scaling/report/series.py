"""The rows of a results.csv as series: runs that differ only in the number of images and the seed."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.scaling.laws.answers import Terms
from big_vision_lite.scaling.laws.curves import LEAST, MOST, Curve, from_points, read_rows
from big_vision_lite.scaling.laws.metric import Metric, main_metric_of
from big_vision_lite.scaling.studies.results import AFTER_FACTORS, FIRST, row_of

FACTORS = ("study", "depth", "noise", "classes", "frozen", "init")
"""Columns in which series differ, besides those that a study adds."""
_NO_METRICS = {*FIRST, *AFTER_FACTORS, "wall_seconds"}


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run."""

    run: str
    folder: Path
    """Its study's folder."""
    task: str
    """Stage and head: metrics compare within a task."""
    images: float | None
    seed: str
    factors: dict[str, str]
    metrics: dict[str, float]
    main: Metric | None = None
    """Main metric; None if the csv file names none."""
    frozen_summary: str = ""
    seen: float | None = None
    """Images seen, repeats included."""

    def key(self, *but: str) -> tuple[tuple[str, str], ...]:
        """The factors other than the ones named."""
        return tuple((name, value) for name, value in self.factors.items() if name not in but)


@dataclasses.dataclass(frozen=True)
class Results:
    """The contents of results.csv files; ``notes`` say which rows were left out, and why."""

    rows: tuple[dict[str, str], ...]
    runs: tuple[Result, ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...]

    def tasks(self) -> dict[str, list[Result]]:
        """Runs by task, pretraining first."""
        tasks = _grouped(self.runs, lambda run: run.task)
        return dict(sorted(tasks.items(), key=lambda task: (not task[0].startswith("pretraining"), task[0])))


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric of runs that differ only in images and seed, sorted by images."""

    label: str
    metric: Metric
    runs: tuple[Result, ...]

    @property
    def images(self) -> np.ndarray:
        return np.array([run.images for run in self.runs], float)

    @property
    def values(self) -> np.ndarray:
        return np.array([run.metrics[self.metric.name] for run in self.runs])

    @property
    def chance(self) -> float | None:
        """The chance-level error: by the metric's column ``..._chance``, or for top-1 by the number of classes."""
        column = f"{self.metric.name}_chance"
        values = [run.metrics[column] for run in self.runs if column in run.metrics]
        if not values and self.metric.name.split("/")[-1] == "top1":
            values = [1 / classes for run in self.runs if (classes := number(run.factors.get("classes", "")))]
        return float(self.metric.to_error(np.mean(values, keepdims=True))[0]) if values else None

    @property
    def budget(self) -> str:
        """What the runs have in common, such as "at 153,600 images seen" or "at 10 passes"; empty if unknown."""
        seen = [run.seen for run in self.runs]
        if None in seen:
            return ""
        passes = {float(f"{run.seen / run.images:.2g}") for run in self.runs}
        if len(set(seen)) == 1:
            return f"at {seen[0]:,.0f} images seen"
        if len(passes) == 1:
            return f"at {passes.pop():g} passes"
        return f"at {min(seen):,.0f} to {max(seen):,.0f} images seen"

    @property
    def terms(self) -> Terms:
        """What answers of laws are put in."""
        return dataclasses.replace(self.metric.terms, budget=self.budget)

    def sizes(self) -> dict[float, np.ndarray]:
        """The values of each size."""
        return {float(size): self.values[self.images == size] for size in np.unique(self.images)}

    def curve(self) -> Curve:
        """As errors. Raises: UserError when they are not positive, with the run; or as `Metric.best`."""
        for run, value, error in zip(self.runs, self.values, self.metric.to_error(self.values), strict=True):
            if not LEAST <= error <= MOST:
                expected = (f"expected scores below {self.metric.best:g}; evaluate on more images, choose another "
                            "metric, or give --lower-is-better with it" if self.metric.higher_is_better else
                            "expected values above 0")
                raise UserError(f"{self.label + ': ' if self.label else ''}{self.metric.name} of run {run.run!r} is "
                                f"{value:g}, {expected}")
        return from_points(self.images, self.metric.to_error(self.values), [run.seed for run in self.runs], self.label)


def read_results(folders: Sequence[Path], imports: Sequence[str] = ()) -> Results:
    """Read the results.csv of each folder, or the folder's own run. Runs that are not done, have no metrics or share a
    name and a study are left out, with a note each.

    Args:
      imports: modules besides this package that the classes in runs' configs may come from.

    Raises:
      UserError: no csv file and no run, no column ``run``, an unknown direction, or a config cannot be read.
    """
    rows = [(parent, row) for folder in folders for parent, row in _read_folder(folder, imports)]
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    rows = [(parent, {name: row.get(name, "") for name in columns}) for parent, row in rows]
    metrics = [name for name in columns if "/" in name] or [
        name for name in columns if name not in _NO_METRICS and any(number(row[name]) is not None for _, row in rows)]
    own_factors = [name for name in columns if name not in _NO_METRICS and name not in metrics]
    factors = [name for name in (*FACTORS, *own_factors) if name in columns]
    names = {row["run"] for _, row in rows}
    notes, runs = [], []
    entries: dict[tuple[str, str], list[tuple[Path, dict[str, str]]]] = {}  # by study and run
    for parent, row in rows:
        if row.get("stage") == "trunk":  # runs at a constant rate, which others go on from
            continue
        entries.setdefault((row.get("study", ""), row["run"]), []).append((parent, row))
    unfinished: dict[tuple[str, str], list[str]] = {}  # by study and status
    for (study, name), same in entries.items():
        parent, row = same[0]
        other = next((other for _, other in same if other != row), None)
        if other is not None:
            different = [column for column in columns if row[column] != other[column]]
            notes.append(f"run {name!r} appears twice, with different {', '.join(different[:4])}: left out; give the "
                         "runs different names")
            continue
        if row.get("status", "done") not in ("", "done"):
            unfinished.setdefault((study, row["status"]), []).append(name)
            continue
        values = {metric: value for metric in metrics if (value := number(row[metric])) is not None}
        if not values:
            notes.append(f"run {name!r} has no metrics: left out; finish it, or evaluate it")
            continue
        invalid = [metric for metric in metrics if row[metric] and metric not in values]
        if invalid:
            notes.append(f"run {name!r}: {invalid[0]} is {row[invalid[0]]!r}, not a number: left out")
        init = row.get("init") or "random"
        stage = row.get("stage") or ("pretraining" if init == "random" else "transfer")
        levels = {factor: row[factor] for factor in factors if row[factor]}
        if levels.get("init") in names:
            levels["init"] = "pretraining"  # as a study says it
        task = stage + (f", {row['head']}" if row.get("head") else "")
        images = number(row.get("images", ""))
        if row.get("images") and (images is None or not 0 < images <= MOST):
            notes.append(f"run {name!r}: images is {row['images']!r}, expected a number above 0, up to {MOST:g}: in no "
                         "curve")
            images = None
        runs.append(Result(name, parent, task, images, row.get("seed", ""), levels, values,
                           main_metric_of(row), row.get("frozen_summary", ""), number(row.get("images_seen", ""))))
    for (study, status), left_out in unfinished.items():
        if len(left_out) <= 3:
            notes += [f"run {name!r} is {status}" for name in left_out]
        else:
            notes.append(f"{len(left_out)} runs of {study or 'no study'} are {status}, the first of them "
                         f"{left_out[0]!r}")
    return Results(tuple(row for _, row in rows), tuple(_by_budget(runs)), tuple(metrics), tuple(notes))


def _by_budget(runs: Sequence[Result]) -> list[Result]:
    """The runs, with the images seen as a factor where runs of one size differ in them: a curve is of one budget."""
    seen: dict[tuple, set[float | None]] = {}
    for run in runs:
        seen.setdefault((run.task, run.images, run.key()), set()).add(run.seen)
    grids = {(task, dict(key).get("study")) for (task, _, key), values in seen.items() if len(values) > 1}
    return [dataclasses.replace(run, factors=run.factors | {"images_seen": f"{run.seen:g}"})
            if run.seen and (run.task, run.factors.get("study")) in grids else run for run in runs]


def curves_of(path: Path, metric: str | None, lower_is_better: bool, imports: Sequence[str] = ()
              ) -> Iterator[tuple[str, Series]]:
    """Task and series of each curve of two sizes or more in a results.csv or a study's folder.

    Args:
      metric: its column; by default the main metric of each task's runs.
      lower_is_better: direction of ``metric`` where it is no run's main metric.

    Raises:
      UserError: no such metric, or none is given and no run names its main metric; or as `read_results`.
    """
    results = read_results([path], imports)
    if metric is not None and metric not in results.metrics:
        raise UserError(f"--score {metric!r}: no such column in {path}" + nearest(metric, results.metrics))
    tasks = results.tasks()
    for task, runs in tasks.items():
        chosen = main_metric(runs)
        if metric is not None:
            chosen = next((run.main for run in runs if run.main is not None and run.main.name == metric),
                          Metric(metric, not lower_is_better))
        elif chosen is None:
            raise UserError(f"{path}: no run names its main metric; give --score, one of {', '.join(results.metrics)}")
        for line in all_series(runs, chosen):
            if len(line.sizes()) > 1:
                yield task if len(tasks) > 1 else "", line


def _read_folder(folder: Path, imports: Sequence[str]) -> list[tuple[Path, dict[str, str]]]:
    """The rows of a folder's results.csv, or that of its own run, each with the run's parent folder."""
    path = folder if folder.is_file() else folder / "results.csv"
    if not path.is_file() and (folder / "config.json").is_file():
        row = row_of(folder, imports)
        return [(folder.resolve().parent, {name: "" if value is None else str(value) for name, value in row.items()})]
    if not path.is_file():
        raise UserError(f"no results.csv in {str(folder)!r}; expected the folder of a study that bvl study ran, or "
                        "that of a run")
    rows = read_rows(path)
    if "run" not in rows[0]:
        raise UserError(f"{path}: no column 'run'" + nearest("run", rows[0]))
    return [(path.parent, row) for row in rows]


def main_metric(runs: Iterable[Result]) -> Metric | None:
    """The main metric of most runs; None if no run names one."""
    counts = collections.Counter(run.main for run in runs if run.main is not None and run.main.name in run.metrics)
    return max(counts, key=counts.get, default=None)


def by_study(runs: Sequence[Result]) -> dict[str, list[Result]]:
    return _grouped(runs, lambda run: run.factors.get("study", ""))


def main_series(runs: Sequence[Result], metric: Metric, label: str) -> Series | None:
    """The series with most sizes; among equals, with most runs, then with least noise, then with most images seen. What
    distinguishes it from the others is added to its label."""
    groups = _by_key(runs, metric, lambda run: run.key())
    if not groups:
        return None
    key = max(groups, key=lambda key: _rank(groups[key]))
    return _series(", ".join(filter(None, (label, _distinction(key, groups)))), metric, groups[key])


def series_along(runs: Sequence[Result], metric: Metric, factor: str) -> list[Series]:
    """Series that differ in one factor only, labelled by its levels: of all such sets, the one with most levels and
    runs."""
    sets = _by_key([run for run in runs if factor in run.factors], metric, lambda run: run.key(factor))
    best: dict[str, list[Result]] = {}
    for group in sets.values():
        levels = _grouped(group, lambda run: run.factors[factor])
        if (len(levels), len(group)) > (len(best), sum(map(len, best.values()))):
            best = levels
    return [_series(level, metric, best[level]) for level in sorted(best, key=_order)] if len(best) > 1 else []


def all_series(runs: Sequence[Result], metric: Metric) -> list[Series]:
    """All series, labelled by the factors in which they differ."""
    groups = _by_key(runs, metric, lambda run: run.key())
    return [_series(_distinction(key, groups), metric, group) for key, group in groups.items()]


def _distinction(key: tuple[tuple[str, str], ...], keys: Iterable[tuple[tuple[str, str], ...]]) -> str:
    """The factors in which a series differs from some other."""
    return ", ".join(f"{name} {value}" for name, value in key if any(dict(other).get(name) != value for other in keys))


def _by_key(runs: Iterable[Result], metric: Metric, key: Callable[[Result], tuple]) -> dict[tuple, list[Result]]:
    """The runs that have the metric and a number of images, by key."""
    return _grouped((run for run in runs if metric.name in run.metrics and run.images), key)


def _grouped(runs: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    groups: dict[Any, list[Result]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _rank(group: Sequence[Result]) -> tuple[float, ...]:
    return (len({run.images for run in group}), len(group), -(number(group[0].factors.get("noise", "")) or 0.0),
            group[0].seen or 0.0)


def _series(label: str, metric: Metric, runs: Iterable[Result]) -> Series:
    return Series(label, metric, tuple(sorted(runs, key=lambda run: (run.images, run.seed))))


def _order(level: str) -> tuple[bool, float, str]:
    value = number(level)
    return value is None, value or 0.0, level


def number(text: str) -> float | None:
    """A cell as a finite number; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
