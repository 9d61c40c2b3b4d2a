"""Learning curves, read from csv files."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from big_vision_lite.errors import UserError, nearest, reading
from big_vision_lite.system.parse import read_text

SIZES = ("x", "images", "seen_examples")
"""Columns in which sizes are looked for."""
TRAIN, EXTRAPOLATE = "train", "extrapolate"
LEAST, MOST = 1e-30, 1e30
"""Limits of sizes and errors, within which fits neither overflow nor vanish."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Errors at sizes, sorted by size; one point per run.

    Raises:
      UserError: sizes or errors that are not between `LEAST` and `MOST`; held-out points that are not larger than all
        others.
    """

    name: str
    x: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    seed: Int[np.ndarray, " n"]
    held_out: Bool[np.ndarray, " n"]
    """Points that are used neither to fit nor to choose a law."""

    def __post_init__(self):
        where = f"curve {self.name!r}: " if self.name else ""
        for what, values in (("size", self.x), ("error", self.error)):
            invalid = ~((values >= LEAST) & (values <= MOST))
            if invalid.any():
                raise UserError(f"{where}{what} {values[invalid][0]:g} in point {int(invalid.argmax()) + 1}; expected "
                                f"numbers above 0, from {LEAST:g} to {MOST:g}; leave such points out")
        order = np.lexsort((self.seed, self.x))
        for field in ("x", "error", "seed", "held_out"):
            object.__setattr__(self, field, getattr(self, field)[order])
        train = ~self.held_out
        if not train.any():
            raise UserError(f"{where}no rows to fit: all are marked {EXTRAPOLATE}")
        if self.held_out.any() and self.x[self.held_out].min() <= self.x[train].max():
            raise UserError(f"{where}sizes out of order: {EXTRAPOLATE} at {self.x[self.held_out].min():g}, {TRAIN} at "
                            f"{self.x[train].max():g}; the former must be larger than all of the latter")

    @property
    def sizes(self) -> int:
        """Number of different sizes."""
        return np.unique(self.x).size

    def take(self, points: Bool[np.ndarray, " n"]) -> Curve:
        """Some of the points, none of them held out."""
        return Curve(self.name, self.x[points], self.error[points], self.seed[points],
                     np.zeros(int(points.sum()), bool))

    @property
    def train(self) -> Curve:
        return self.take(~self.held_out)


def from_points(x, error, seed=None, name: str = "", held_out=False) -> Curve:
    """A curve from sequences of equal length."""
    x = np.asarray(x, float)
    seed = np.zeros(x.size, int) if seed is None else np.unique(np.asarray(seed), return_inverse=True)[1].astype(int)
    return Curve(name, x, np.asarray(error, float), seed, np.broadcast_to(held_out, x.shape))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file with a header. Raises: UserError when it is not one."""
    with reading(path, "expected a csv file", csv.Error):
        table = csv.DictReader(io.StringIO(read_text(path, "expected a csv file"), newline=""), strict=True)
        rows, header = list(table), table.fieldnames
    if not header or not rows:
        raise UserError(f"{path}: no rows; expected a header line and one row per point")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: column {repeated[0]!r} appears twice")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}: line {number} does not have {len(header)} fields like the header")
    return rows


def read_curves(path: Path, x: str | None = None, error: str = "error", split: str = "split", seed: str = "seed",
                curve: str = "curve") -> list[Curve]:
    """The curves in a csv file: one, or one per name in column ``curve``.

    Args:
      x: column of the size; by default the first of `SIZES` that exists.
      error: column of the error, above 0; lower is better.
      split: column with ``train`` or ``extrapolate``; without it all rows are fitted.
      seed: column that distinguishes runs of equal size.

    Raises:
      UserError: the file, a column or a value is invalid; or the sizes of one seed decrease from row to row.
    """
    rows = read_rows(path)
    x = x or next((name for name in SIZES if name in rows[0]), "x")
    by_name: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for line, row in enumerate(rows, 2):
        by_name.setdefault(row.get(curve, ""), []).append((line, row))
        if row.get(split, TRAIN) not in (TRAIN, EXTRAPOLATE):
            raise UserError(f"{path}: line {line}: {split} is {row[split]!r}, expected {TRAIN!r} or {EXTRAPOLATE!r}")
    return [_curve(path, name, lines, x, error, split, seed) for name, lines in by_name.items()]


def _curve(path: Path, name: str, lines: list[tuple[int, dict[str, str]]], x: str, error: str, split: str,
           seed: str) -> Curve:
    largest: dict[tuple[str, str], float] = {}
    sizes, errors, seeds = [], [], []
    for line, row in lines:
        size = read_number(path, line, x, row)
        key = (row.get(seed, ""), row.get(split, ""))
        if size < largest.get(key, -math.inf):
            raise UserError(f"{path}: line {line}: sizes out of order: {size:g} after {largest[key]:g}; sort rows by "
                            f"{x}, or name curves or seeds in their own columns")
        largest[key] = size
        sizes.append(size)
        errors.append(read_number(path, line, error, row))
        seeds.append(row.get(seed, ""))
    return from_points(sizes, errors, seeds, name, [row.get(split) == EXTRAPOLATE for _, row in lines])


def read_number(path: Path, line: int, column: str, row: dict[str, str]) -> float:
    """A number above 0 in a row. Raises: UserError otherwise."""
    if column not in row:
        raise UserError(f"{path}: no column {column!r}" + nearest(column, row))
    text = row[column]
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{path}: line {line}: {column} is {text!r}, expected a number") from None
    if not LEAST <= value <= MOST:
        raise UserError(f"{path}: line {line}: {column} is {text}, expected a number above 0, from {LEAST:g} to "
                        f"{MOST:g}; leave the row out")
    return value


def format_count(value: float) -> str:
    """Such as 12,300, 4.5 million, 3.1e+15."""
    if math.isinf(value):
        return "no bound"
    if value < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
    for unit, size in (("million", 1e6), ("billion", 1e9)):
        if value < 999.5 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.2e}"
