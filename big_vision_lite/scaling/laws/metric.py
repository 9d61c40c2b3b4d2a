"""Metrics of results.csv, and how their values become errors and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.heads.head import MainMetric
from big_vision_lite.scaling.laws.answers import Terms

_BEST = {"": 1.0, "%": 100.0}
"""Highest values of metrics whose higher values are better, by unit."""


@dataclasses.dataclass(frozen=True)
class Metric(MainMetric):
    """A metric's column of results.csv, by its name."""

    @property
    def label(self) -> str:
        """Such as "test/top1" or "test/rmse (px, lower is better)"."""
        notes = [self.unit] * bool(self.unit) + ["lower is better"] * (not self.higher_is_better)
        return self.name + (f" ({', '.join(notes)})" if notes else "")

    @property
    def terms(self) -> Terms:
        """What answers of laws are put in."""
        return Terms(self.name, self.to_error, self.higher_is_better)

    @property
    def best(self) -> float:
        """The highest value. Raises: UserError when it is unknown."""
        if self.unit not in _BEST:
            raise UserError(f"the highest value of {self.label} is unknown, so it has no error; use unit '' or '%' "
                            "or a metric whose lower values are better")
        return _BEST[self.unit]

    def to_error(self, values: np.ndarray) -> np.ndarray:
        """Values as errors, and errors as values: the best value minus them, or themselves if lower is better."""
        return self.best - values if self.higher_is_better else values


def main_metric_of(row: Mapping[str, str]) -> Metric | None:
    """The main metric that a row of results.csv names, if any. Raises: UserError for an unknown direction."""
    if not row.get("main_metric"):
        return None
    direction = row.get("direction") or "higher"
    if direction not in ("higher", "lower"):
        raise UserError(f"run {row['run']!r}: direction is {direction!r}, expected 'higher' or 'lower'")
    return Metric(row["main_metric"], direction == "higher", row.get("unit", ""))
