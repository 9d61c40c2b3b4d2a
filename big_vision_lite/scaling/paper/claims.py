"""The claims of Sun et al. (2017) and what runs here say of each: contrasts of runs that are paired by their seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Row = Mapping[str, str]
FEWEST_SEEDS = 3
STANDARD_ERRORS = 2.0
"""A difference counts if its mean over seeds is more than this many times its standard error, and all seeds agree."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a contrast: rows whose columns have these values.

    Args:
      sign: 1 or -1, with which their score enters.
      metric: column of their score; None: that of the contrast.
    """

    sign: int
    where: Mapping[str, str | float]
    metric: str | None = None

    def scores(self, rows: Iterable[Row], metric: str) -> dict[str, float]:
        """By seed. Several runs of a seed count by their mean."""
        found: dict[str, list[float]] = {}
        metric = self.metric or metric
        for row in rows:
            if row.get(metric) and all(_equal(row.get(name, ""), value) for name, value in self.where.items()):
                found.setdefault(row.get("seed", ""), []).append(float(row[metric]))
        return {seed: sum(values) / len(values) for seed, values in found.items()}


@dataclasses.dataclass(frozen=True)
class Contrast:
    """What is compared: a sum of signed scores, which is above 0 if the claim holds."""

    what: str
    metric: str
    runs: tuple[Runs, ...]

    def differences(self, rows: Sequence[Row]) -> np.ndarray:
        """One value per seed that all of the runs have."""
        scores = [runs.scores(rows, self.metric) for runs in self.runs]
        seeds = sorted(set.intersection(*map(set, scores))) if scores else []
        return np.array([sum(runs.sign * values[seed] for runs, values in zip(self.runs, scores, strict=True))
                         for seed in seeds])


@dataclasses.dataclass(frozen=True)
class Finding:
    """A contrast with its figures."""

    what: str
    values: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean over seeds; nan for fewer than two."""
        return float(self.values.std(ddof=1) / math.sqrt(self.values.size)) if self.values.size > 1 else math.nan

    @property
    def verdict(self) -> str:
        """"holds" or "does not hold" if all of at least `FEWEST_SEEDS` agree and the mean is clear; else "cannot be
        told here"."""
        if not self.values.size:
            return "not run"
        clear = abs(self.mean) > STANDARD_ERRORS * self.standard_error
        if self.values.size < FEWEST_SEEDS or not clear or len(set(np.sign(self.values))) > 1:
            return "cannot be told here"
        return "holds" if self.mean > 0 else "does not hold"

    @property
    def figures(self) -> str:
        """Such as "+0.031 ± 0.004 (standard error, 3 seeds)"."""
        if not self.values.size:
            return "-"
        if self.values.size == 1:
            return f"{self.mean:+.3f} (1 seed)"
        return f"{self.mean:+.4f} ± {self.standard_error:.4f} ({self.values.size} seeds)"


def find(contrast: Contrast, rows: Sequence[Row]) -> Finding:
    """The differences of a contrast in finished rows of results.csv files."""
    done = [row for row in rows if row.get("status", "done") in ("", "done") and row.get("stage") != "trunk"]
    return Finding(contrast.what, contrast.differences(done))


def _equal(cell: str, value: str | float) -> bool:
    """Numbers within 1 %: the images seen are a whole number of batches."""
    if isinstance(value, str):
        return cell == value
    try:
        return math.isclose(float(cell or 0), value, rel_tol=0.01)
    except ValueError:
        return False
