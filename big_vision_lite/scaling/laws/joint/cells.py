"""Runs of results.csv as cells of a surface: all seeds at one number of images, images seen, network and noise.

The symbols of the laws: D unique images, S images seen (passes = S / D), N operations of one forward pass per image,
p the share of wrong labels.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.scaling.laws.curves import LEAST, MOST, format_count, read_rows
from big_vision_lite.scaling.laws.metric import Metric, main_metric_of
from big_vision_lite.scaling.laws.noise import PRIOR, USUAL_NOISE, USUAL_POINTS

BACKWARD = 3
"""Operations of a training step are counted as this many forward passes: backward costs two."""
RISE = 3.0
"""Errors that rise with S by more than this many standard errors of the difference count as memorised."""
TUNED = ("learning_rate", "rate")
"""Columns of what was tuned: of several levels in a cell, the best is taken."""
NETWORK = ("depth", "width")
"""Columns that name a network."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of results.csv."""

    name: str
    images: float
    seen: float
    operations: float
    """Of one forward pass per image; 1 if the file does not tell."""
    noise: float
    kind: str
    """Of noise; empty where there is none or one kind alone."""
    network: str
    seed: str
    error: float
    tuned: tuple[str, ...] = ()
    source: Path = Path()


@dataclasses.dataclass(frozen=True)
class Cells:
    """Means over seeds, one entry per cell."""

    images: Float[np.ndarray, " n"]
    seen: Float[np.ndarray, " n"]
    operations: Float[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]
    kind: tuple[str, ...]
    network: tuple[str, ...]
    error: Float[np.ndarray, " n"]
    seeds: Int[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]
    """Standard deviation of the log error from seed to seed."""

    def __len__(self) -> int:
        return self.error.size

    @property
    def standard_error(self) -> Float[np.ndarray, " n"]:
        """Of the mean over seeds, of the log error."""
        return self.sigma / np.sqrt(self.seeds)

    @property
    def budget(self) -> Float[np.ndarray, " n"]:
        """Operations of the training of one run."""
        return BACKWARD * self.operations * self.seen

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of noise, sorted."""
        return tuple(sorted({kind for kind, noise in zip(self.kind, self.noise, strict=True) if noise > 0}))

    @property
    def networks(self) -> dict[str, float]:
        """Operations of each network, smallest first."""
        found = dict(zip(self.network, self.operations.tolist(), strict=True))
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def take(self, which: Bool[np.ndarray, " n"]) -> Cells:
        return Cells(self.images[which], self.seen[which], self.operations[which], self.noise[which],
                     tuple(np.array(self.kind, object)[which]), tuple(np.array(self.network, object)[which]),
                     self.error[which], self.seeds[which], self.sigma[which])

    def memorised(self) -> Bool[np.ndarray, " n"]:
        """Cells beyond the S at which the error of their (D, N, p) is lowest, where it rises again by more than noise.

        A rise counts from `RISE` standard errors of the difference on. Laws never rise, so these cells are outside.
        """
        outside = np.zeros(len(self), bool)
        for at in self._along_seen():
            lowest = at[self.error[at].argmin()]
            later = at[self.seen[at] > self.seen[lowest]]
            spread = np.hypot(self.standard_error[later], self.standard_error[lowest])
            if (np.log(self.error[later] / self.error[lowest]) > RISE * spread).any():
                outside[later] = True
        return outside

    def _along_seen(self) -> Iterable[Int[np.ndarray, " m"]]:
        """Numbers of the cells that differ in S alone, one array per group."""
        groups = collections.defaultdict(list)
        for i, key in enumerate(zip(self.images, self.operations, self.noise, self.kind, strict=True)):
            groups[key].append(i)
        return map(np.array, groups.values())


@dataclasses.dataclass(frozen=True)
class Surface:
    """What results.csv files say about one task."""

    cells: Cells
    runs: tuple[Run, ...]
    metric: Metric
    chance: float | None
    """Error of guessing; None if unknown."""
    counted: bool
    """Whether operations are known."""
    notes: tuple[str, ...]


def read_surface(sources: Sequence[Path], score: str | None = None, lower_is_better: bool = False) -> Surface:
    """The pretraining runs of results.csv files, or of studies' folders, that are done.

    Args:
      score: column of the metric; by default the main metric of most runs.
      lower_is_better: direction of ``score`` where it is no run's main metric.

    Raises:
      UserError: a file is no results.csv, lacks a column, or holds no such run; or a cell is no number.
    """
    rows = [row for row in read_done(sources) if is_pretraining(row[1])]
    return surface_of(rows, ", ".join(map(str, sources)), score, lower_is_better)


def is_pretraining(row: dict[str, str]) -> bool:
    """Whether a row is a pretraining run: neither a trunk, from which cool-downs branch off, nor trained on a target
    task."""
    return row.get("stage", "pretraining") in ("", "pretraining") and not row.get("target_images")


def read_done(sources: Sequence[Path]) -> list[tuple[Path, dict[str, str]]]:
    """The rows of results.csv files that are done, each with its file; repeated rows once.

    Raises:
      UserError: as `read_surface`.
    """
    rows, seen = [], set()
    for source in sources:
        path = source / "results.csv" if source.is_dir() else source
        if source.is_dir() and not path.is_file():
            raise UserError(f"no results.csv in {str(source)!r}; expected the folder of a study that bvl study ran")
        for row in read_rows(path):
            if "run" not in row:
                raise UserError(f"{path}: no column 'run'" + nearest("run", row))
            key = (row.get("study"), row["run"], tuple(sorted(row.items())))
            if row.get("status", "done") in ("", "done") and key not in seen:
                seen.add(key)
                rows.append((path, row))
    return rows


def surface_of(rows: Sequence[tuple[Path, dict[str, str]]], where: str, score: str | None = None,
               lower_is_better: bool = False) -> Surface:
    """A surface from rows of results.csv, each with its file. Raises: UserError: as `read_surface`."""
    if not rows:
        raise UserError(f"{where}: no finished pretraining runs; expected rows with status done and stage pretraining")
    metric = choose_metric(rows, score, lower_is_better, where)
    rows = [row for row in rows if row[1].get(metric.name)]
    rows, notes = _one_task(rows)
    counted = all(row.get("operations") for _, row in rows)
    runs = [_run(path, row, metric, counted) for path, row in rows]
    if not counted and len({run.network for run in runs}) > 1:
        raise UserError(f"{where}: networks differ but some runs have no operations; expected the column operations, "
                        "the FLOPs of a run's training")
    kept, tuned = _tuned(_tell_apart(runs))
    return Surface(cells_of(kept), tuple(kept), metric, chance_of([row for _, row in rows], metric), counted,
                   (*notes, *tuned))


def choose_metric(rows: Sequence[tuple[Path, dict[str, str]]], score: str | None, lower_is_better: bool, where: str
                  ) -> Metric:
    """The metric of a column, or the main metric of most rows. Raises: UserError when there is none."""
    mains = collections.Counter(main for _, row in rows if (main := main_metric_of(row)) is not None)
    columns = sorted({name for _, row in rows for name, value in row.items() if "/" in name and value})
    if score is not None:
        if score not in columns:
            raise UserError(f"--score {score!r}: no such column in {where}" + nearest(score, columns))
        return next((main for main in mains if main.name == score), Metric(score, not lower_is_better))
    if not mains:
        raise UserError(f"{where}: no run names its main metric; give --score, one of {', '.join(columns)}")
    return mains.most_common(1)[0][0]


def chance_of(rows: Iterable[dict[str, str]], metric: Metric) -> float | None:
    """The error of guessing: by the metric's column ``..._chance``, for top-1 by the number of classes, else that of
    the worst score, if it has one."""
    scores = [float(row[f"{metric.name}_chance"]) for row in rows if row.get(f"{metric.name}_chance")]
    if not scores and metric.name.rpartition("/")[2] in ("top1", "top_1"):
        scores = [metric.best / float(row["classes"]) for row in rows if row.get("classes")]
    if scores:
        return float(metric.to_error(np.mean(scores, keepdims=True))[0])
    return metric.best if metric.higher_is_better else None


def _one_task(rows: Sequence[tuple[Path, dict[str, str]]]
              ) -> tuple[list[tuple[Path, dict[str, str]]], list[str]]:
    """The rows of the head and the classes that most have, and a note on the others."""
    tasks = collections.Counter((row.get("head", ""), row.get("classes", "")) for _, row in rows)
    (head, classes), count = tasks.most_common(1)[0]
    note = (f"{sum(tasks.values()) - count} runs of other heads or numbers of classes are left out; the law is of "
            f"{', '.join(filter(None, (head, f'{classes} classes' if classes else '')))}")
    return ([row for row in rows if (row[1].get("head", ""), row[1].get("classes", "")) == (head, classes)],
            [note] if len(tasks) > 1 else [])


def _run(path: Path, row: dict[str, str], metric: Metric, counted: bool) -> Run:
    images, seen = number(path, row, "images"), number(path, row, "images_seen")
    noise = number(path, row, "noise", low=0.0, high=0.999) if row.get("noise") else 0.0
    error = error_of(path, row, metric)
    operations = number(path, row, "operations") / (BACKWARD * seen) if counted else 1.0
    # A network's operations differ in the last digits between runs, as those of short runs are rounded.
    network = ", ".join(f"{name} {row[name]}" for name in NETWORK if row.get(name)) or "network"
    return Run(row["run"], images, seen, float(f"{operations:.4g}"), noise,
               row.get("noise_kind", "") if noise else "", network, row.get("seed", ""), error,
               tuple(f"{name} {row[name]}" for name in TUNED if row.get(name)), path)


def number(path: Path, row: dict[str, str], column: str, low: float = LEAST, high: float = MOST) -> float:
    """A number in a row. Raises: UserError when it is none, or not within limits."""
    if column not in row:
        raise UserError(f"{path}: no column {column!r}" + nearest(column, row))
    try:
        value = float(row[column])
    except ValueError:
        raise UserError(f"{path}: run {row['run']!r}: {column} is {row[column]!r}, expected a number") from None
    if not low <= value <= high:
        raise UserError(f"{path}: run {row['run']!r}: {column} is {row[column]}, expected a number from {low:g} to "
                        f"{high:g}")
    return value


def error_of(path: Path, row: dict[str, str], metric: Metric) -> float:
    """The error of a run. Raises: UserError when its score is no number or the best there is."""
    value = number(path, row, metric.name, -MOST)
    error = float(metric.to_error(np.array([value]))[0])
    if not LEAST <= error <= MOST:
        raise UserError(f"{path}: run {row['run']!r}: {metric.name} is {value:g}, expected " + (
            f"a score below {metric.best:g}" if metric.higher_is_better else "a value above 0") + "; leave it out")
    return error


def _tell_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, with operations in the names of networks that share theirs."""
    found: dict[str, set[float]] = {}
    for run in runs:
        found.setdefault(run.network, set()).add(run.operations)
    return [dataclasses.replace(run, network=f"{run.network}, {run.operations:.3g} operations per image")
            if len(found[run.network]) > 1 else run for run in runs]


def _tuned(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs with the best level of what was tuned in each cell, and a note if there were several."""
    kept: list[Run] = []
    several = 0
    for group in _grouped(runs, lambda run: (run.images, run.seen, run.operations, run.noise, run.kind)):
        levels = list(_grouped(group, lambda run: run.tuned))
        several += len(levels) > 1
        kept += min(levels, key=lambda level: float(np.mean([run.error for run in level])))
    what = " and ".join(name for name in TUNED if any(f"{name} " in level for run in runs for level in run.tuned))
    return kept, [f"{several} cells were tried at several levels of {what}: the best is taken"] if several else []


def cells_of(runs: Sequence[Run]) -> Cells:
    """Cells of runs, sorted by N, p, D and S."""
    groups = sorted(_grouped(runs, lambda run: (run.images, run.seen, run.operations, run.noise, run.kind)),
                    key=lambda group: (group[0].operations, group[0].noise, group[0].kind, group[0].images,
                                       group[0].seen))
    first = [group[0] for group in groups]
    errors = [np.array([run.error for run in group]) for group in groups]
    return Cells(*(np.array([getattr(run, name) for run in first], float) for name in ("images", "seen", "operations",
                                                                                "noise")),
                 tuple(run.kind for run in first), tuple(run.network for run in first),
                 np.array([values.mean() for values in errors]), np.array([values.size for values in errors]),
                 seed_noise([np.log(values) for values in errors]))


def seed_noise(log_errors: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " n"]:
    """Standard deviation of the log error from seed to seed in each cell, shrunk towards that of all cells together, as
    `noise.points` does for one variable."""
    square = np.array([((values - values.mean())**2).sum() for values in log_errors])
    freedom = np.array([values.size - 1 for values in log_errors])
    pooled = (square.sum() + USUAL_POINTS * USUAL_NOISE**2) / (freedom.sum() + USUAL_POINTS)
    return np.sqrt((square + PRIOR * pooled) / (freedom + PRIOR))


def _grouped(runs: Iterable[Run], key: Callable[[Run], tuple]) -> Iterable[list[Run]]:
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups.values()


def extent(values: np.ndarray, what: str = "") -> str:
    """Such as "1,400 to 45,000 images"."""
    low, high = format_count(float(values.min())), format_count(float(values.max()))
    return (low if low == high else f"{low} to {high}") + (f" {what}" if what else "")
