"""The rows of a results.csv as series: runs that differ in the number of images and the seed alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.scaling.curves import Curve, from_points, read_rows
from big_vision_lite.scaling.results import row_of

FACTORS = ("study", "depth", "noise", "classes", "frozen", "init")
"""Columns in which series differ, beside those that a study adds."""
_KNOWN = {*FACTORS, "run", "status", "stage", "head", "images", "seed", "steps", "images_seen", "epochs", "data",
          "versions", "wall_seconds", "held"}
_PREFERRED = ("mAP", "top1", "AP", "mIoU", "AP50", "VOC07_AP50", "VOC_AP50", "accuracy")


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run."""

    run: str
    folder: Path
    """Of its study."""
    task: str
    """What its metrics are comparable with: stage and head."""
    images: float | None
    seed: str
    factors: dict[str, str]
    metrics: dict[str, float]
    held: str = ""
    """What stayed as it was while it learnt; "" where the csv does not tell."""

    def key(self, *but: str) -> tuple[tuple[str, str], ...]:
        """The factors other than the ones named."""
        return tuple((name, value) for name, value in self.factors.items() if name not in but)


@dataclasses.dataclass(frozen=True)
class Results:
    """What a results.csv holds, and in ``notes`` what of it cannot be used."""

    rows: tuple[dict[str, str], ...]
    runs: tuple[Result, ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...]
    folders: tuple[Path, ...]
    """Of each row: of the run, which need not be there."""

    def tasks(self) -> dict[str, list[Result]]:
        """Runs by task, pretraining first."""
        names = sorted({run.task for run in self.runs}, key=lambda name: (not name.startswith("pretraining"), name))
        return {name: [run for run in self.runs if run.task == name] for name in names}


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric of runs that differ in images and seed alone, sorted by images."""

    label: str
    metric: str
    runs: tuple[Result, ...]

    @property
    def images(self) -> np.ndarray:
        return np.array([run.images for run in self.runs], float)

    @property
    def values(self) -> np.ndarray:
        return np.array([run.metrics[self.metric] for run in self.runs])

    @property
    def chance(self) -> float | None:
        """The error of guessing: of the column that ends in _chance, or of as many classes for top-1."""
        known = [run.metrics[f"{self.metric}_chance"] for run in self.runs if f"{self.metric}_chance" in run.metrics]
        if self.metric.split("/")[-1] == "top1":
            known = known or [1 / classes for run in self.runs if (classes := _number(run.factors.get("classes", "")))]
        return float(to_error(self.metric, np.mean(known, keepdims=True), self.values)[0]) if known else None

    def sizes(self) -> dict[float, np.ndarray]:
        """The values of each size."""
        return {float(size): self.values[self.images == size] for size in np.unique(self.images)}

    def curve(self) -> Curve:
        """As errors. Raises: UserError where they are not positive, or all equal."""
        return from_points(self.images, to_error(self.metric, self.values, self.values),
                           [run.seed for run in self.runs], self.label)


def read(folders: Sequence[Path], imports: Sequence[str] = ()) -> Results:
    """Read the results.csv of each folder, or the folder's own run. Runs that are not done, have no metrics or share a
    name and a study are left out, with a note each.

    Args:
      imports: modules beside this package that the classes in runs' configs may come from.

    Raises:
      UserError: no csv and no run, no column ``run``, or a config cannot be read.
    """
    rows, at = [], []
    for folder in folders:
        path = folder / "results.csv"
        if not path.is_file() and (folder / "config.json").is_file():
            row = row_of(folder, imports)
            rows.append({name: "" if value is None else str(value) for name, value in row.items()})
            at.append(folder.resolve().parent)
            continue
        if not path.is_file():
            raise UserError(f"no results.csv in {str(folder)!r}; expected the folder of a study that bvl study ran, or "
                            "that of a run")
        found = read_rows(path)
        if "run" not in found[0]:
            raise UserError(f"{path}: no column 'run'" + nearest("run", found[0]))
        rows += found
        at += [folder] * len(found)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name, "") for name in columns} for row in rows]
    slashed = [name for name in columns if "/" in name]
    metrics = slashed or [name for name in columns if name not in _KNOWN and _any_number(row[name] for row in rows)]
    own = [name for name in columns if name not in _KNOWN and name not in metrics]
    factors = [name for name in (*FACTORS, *own) if name in columns]
    names = {row["run"] for row in rows}
    notes, runs = [], []
    unique: dict[tuple[str, str], tuple[Path, dict[str, str]]] = {}
    clashing: set[tuple[str, str]] = set()
    unfinished: dict[tuple[str, str], list[str]] = {}  # by study and status
    for folder, row in zip(at, rows, strict=True):
        key = row.get("study", ""), row["run"]
        _, before = unique.setdefault(key, (folder, row))
        if before != row and key not in clashing:
            clashing.add(key)
            differs = [name for name in columns if before[name] != row[name]]
            notes.append(f"run {row['run']!r} is there twice, with different {', '.join(differs[:4])}: left out; give "
                         "the runs names of their own")
    for key, (folder, row) in unique.items():
        name = row["run"]
        values = {metric: number for metric in metrics if (number := _number(row[metric])) is not None}
        if key in clashing:
            continue
        if row.get("status", "done") not in ("", "done"):
            unfinished.setdefault((key[0], row["status"]), []).append(name)
            continue
        if not values:
            notes.append(f"run {name!r} has no metrics: left out; finish it, or evaluate it")
            continue
        strange = [metric for metric in metrics if row[metric] and metric not in values]
        if strange:
            notes.append(f"run {name!r}: {strange[0]} is {row[strange[0]]!r}, not a number: left out")
        init = row.get("init") or "random"
        stage = row.get("stage") or ("pretraining" if init == "random" else "transfer")
        kept = {factor: row[factor] for factor in factors if row[factor]}
        if "init" in kept and kept["init"] in names:
            kept["init"] = "pretrained"
        task = stage + (f", {row['head']}" if row.get("head") else "")
        runs.append(Result(name, folder, task, _number(row.get("images", "")), row.get("seed", ""), kept, values,
                           row.get("held", "")))
    for (study, status), some in unfinished.items():
        if len(some) <= 3:
            notes += [f"run {name!r} is {status}" for name in some]
        else:
            notes.append(f"{len(some)} runs of {study or 'no study'} are {status}, the first of them {some[0]!r}")
    places = tuple(folder / row["run"] for folder, row in zip(at, rows, strict=True))
    return Results(tuple(rows), tuple(runs), tuple(metrics), tuple(notes), places)


def main_metric(runs: Sequence[Result], metrics: Sequence[str], wanted: str | None = None) -> str:
    """The metric to draw: the one wanted, or the best known one that the runs have.

    Raises:
      UserError: no run has the one wanted.
    """
    there = [metric for metric in metrics if any(metric in run.metrics for run in runs)]
    if wanted is not None:
        if wanted not in there:
            raise UserError(f"no metric {wanted!r}" + nearest(wanted, there))
        return wanted
    for name in _PREFERRED:
        for metric in there:
            if metric.split("/")[-1] == name:
                return metric
    useful = [metric for metric in there if metric.split("/")[-1] not in ("images", "loss")]
    return (useful or there)[0]


def lower_is_better(metric: str) -> bool:
    last = metric.split("/")[-1].lower()
    return "loss" in last or "error" in last


def to_error(metric: str, values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Metric values as errors, and errors as metric values: 1 - value, 100 - value for percent; losses as they are.

    Args:
      among: measured values, which tell percent from shares.
    """
    if lower_is_better(metric):
        return values
    return (100.0 if np.max(among) > 1 else 1.0) - values


def studies(runs: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by study."""
    made: dict[str, list[Result]] = {}
    for run in runs:
        made.setdefault(run.factors.get("study", ""), []).append(run)
    return made


def reference(runs: Sequence[Result], metric: str, label: str) -> Series | None:
    """The series with most sizes; among equals with most runs, then with least noise. To the label is added what tells
    it from the others."""
    groups = _groups(runs, metric, lambda run: run.key())
    if not groups:
        return None
    key = max(groups, key=lambda key: _rank(groups[key]))
    return _series(", ".join(filter(None, (label, _told(key, groups)))), metric, groups[key])


def along(runs: Sequence[Result], metric: str, factor: str) -> list[Series]:
    """Series that differ in one factor alone, a label a level: of all such sets the one with most levels and runs."""
    sets = _groups([run for run in runs if factor in run.factors], metric, lambda run: run.key(factor))
    best: dict[str, list[Result]] = {}
    for group in sets.values():
        levels: dict[str, list[Result]] = {}
        for run in group:
            levels.setdefault(run.factors[factor], []).append(run)
        if (len(levels), len(group)) > (len(best), sum(map(len, best.values()))):
            best = levels
    return [_series(level, metric, best[level]) for level in sorted(best, key=_order)] if len(best) > 1 else []


def every(runs: Sequence[Result], metric: str) -> list[Series]:
    """All series, labelled by the factors in which they differ."""
    groups = _groups(runs, metric, lambda run: run.key())
    return [_series(_told(key, groups), metric, group) for key, group in groups.items()]


def _told(key: tuple[tuple[str, str], ...], among: Iterable[tuple[tuple[str, str], ...]]) -> str:
    """The factors of a series in which some others differ from it."""
    return ", ".join(f"{name} {value}" for name, value in key if any(dict(other).get(name) != value for other in among))


def _groups(runs: Iterable[Result], metric: str, by: Callable[[Result], tuple]) -> dict[tuple, list[Result]]:
    made: dict[tuple, list[Result]] = {}
    for run in runs:
        if metric in run.metrics and run.images is not None and run.images > 0:
            made.setdefault(by(run), []).append(run)
    return made


def _rank(group: Sequence[Result]) -> tuple[float, ...]:
    return len({run.images for run in group}), len(group), -(_number(group[0].factors.get("noise", "")) or 0.0)


def _series(label: str, metric: str, runs: Iterable[Result]) -> Series:
    return Series(label, metric, tuple(sorted(runs, key=lambda run: (run.images, run.seed))))


def _order(level: str) -> tuple[bool, float, str]:
    value = _number(level)
    return value is None, value or 0.0, level


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _any_number(texts: Iterable[str]) -> bool:
    return any(_number(text) is not None for text in texts)
