"""Rules that change labels, each for many examples at once and without images; `curation` says which."""

from __future__ import annotations

import abc
import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from big_vision_lite.data.hierarchy import Hierarchy
from big_vision_lite.data.ragged import Ragged, collected, uniform
from big_vision_lite.errors import UserError, nearest


class LabelRule(abc.ABC):
    """A fixed function of an example's id and labels: what else is in the array makes no difference."""

    @abc.abstractmethod
    def __call__(self, keys: np.ndarray, labels: Ragged) -> Ragged:
        """Args: keys, uint64 ``[n]``, of the examples; labels, ``n`` rows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Remap(LabelRule):
    """Labels renumbered; a new number of -1 takes the label away."""

    table: np.ndarray  # int32 [classes]; increases where it is not -1
    classes: int

    def __call__(self, keys: np.ndarray, labels: Ragged) -> Ragged:
        values = self.table[labels.values]
        there = values >= 0
        return Ragged(np.cumsum(np.bincount(labels.row_of()[there], minlength=len(keys))), values[there])


@dataclasses.dataclass(frozen=True, eq=False)
class AddAncestors(LabelRule):
    """Each label with all that it implies."""

    implied: Ragged  # row c: c itself and its ancestors
    classes: int

    @classmethod
    def of(cls, implied: Sequence[Sequence[int]], classes: int) -> AddAncestors:
        return cls(Ragged.of(sorted(set(row)) for row in implied), classes)

    def __call__(self, keys: np.ndarray, labels: Ragged) -> Ragged:
        more = self.implied.take(labels.values)
        return collected(np.repeat(labels.row_of(), more.counts()), more.values, len(keys), self.classes)


class Draw(abc.ABC):
    """What a wrong label is drawn from."""

    @abc.abstractmethod
    def __call__(self, true: np.ndarray, random: np.ndarray) -> np.ndarray:
        """(true labels int32 ``[k]``, uniform numbers ``[k]``) to labels int64 ``[k]``. One that the image has is drawn
        again."""


ATTEMPTS = 64
"""After so many draws of labels that the image has, it keeps a true label, or gets one wrong label less."""


@dataclasses.dataclass(frozen=True, eq=False)
class Corrupt(LabelRule):
    """Labels replaced by wrong ones; or, with a recall, some taken away and wrong ones added."""

    draw: Draw
    classes: int
    precision: float
    recall: float | None
    seed: int

    def __call__(self, keys: np.ndarray, labels: Ragged) -> Ragged:
        row_of, true = labels.row_of(), labels.values
        of_label = keys[row_of]
        kept = uniform(self.seed, of_label, true, 0) < (self.precision if self.recall is None else self.recall)
        if self.recall is None:
            wrong = (~kept).astype(np.int64)
        else:  # so many a true label that the kept ones make up the wanted share
            mean = self.recall * (1 - self.precision) / self.precision
            more = uniform(self.seed, of_label, true, 1) < mean - int(mean)
            wrong = int(mean) + more.astype(np.int64)
        slot = np.flatnonzero(wrong) if self.recall is None else np.repeat(np.arange(len(true)), wrong)
        if not len(slot):
            return Ragged(np.cumsum(np.bincount(row_of[kept], minlength=len(keys))), true[kept])
        number = np.arange(len(slot)) - np.searchsorted(slot, slot)  # which of its label's wrong ones
        given, drawn = self._wrong(of_label[slot], row_of[slot], true[slot], number,
                                   taken=row_of * self.classes + true)
        if self.recall is None:
            kept[slot[~drawn]] = True
        rows = np.concatenate((row_of[kept], row_of[slot][drawn]))
        return collected(rows, np.concatenate((true[kept], given[drawn])), len(keys), self.classes)

    def _wrong(self, keys, rows, true, number, taken) -> tuple[np.ndarray, np.ndarray]:
        """A label for each slot that its image has not, all of an image different; and where there was one."""
        given = np.full(len(rows), -1, np.int64)
        todo = np.arange(len(rows))
        for attempt in range(ATTEMPTS):
            drawn = self.draw(true[todo], uniform(self.seed, keys[todo], true[todo], 2 + number[todo], attempt))
            pairs = rows[todo] * self.classes + drawn
            first = np.zeros(len(todo), np.bool_)
            first[np.unique(pairs, return_index=True)[1]] = True
            fine = first & (drawn >= 0) & ~np.isin(pairs, taken)
            given[todo[fine]] = drawn[fine]
            todo = todo[~fine]
            if not len(todo):
                break
            taken = np.concatenate((taken, pairs[fine]))
        return given, given >= 0


@dataclasses.dataclass(frozen=True)
class DrawUniformly(Draw):
    """All other classes, equally likely."""

    classes: int

    def __call__(self, true: np.ndarray, random: np.ndarray) -> np.ndarray:
        other = (random * (self.classes - 1)).astype(np.int64)
        return other + (other >= true)


@dataclasses.dataclass(frozen=True, eq=False)
class DrawWeighted(Draw):
    """From a weighted list, of which each class has one and many classes may share one."""

    list_of: np.ndarray  # int64 [classes]
    choices: Ragged
    steps: np.ndarray  # float64 [m]: list i's cumulative shares, plus i, so that one search serves all lists

    @classmethod
    def of(cls, list_of: np.ndarray, choices: Sequence[Sequence[int]],
           weights: Sequence[Sequence[float]]) -> DrawWeighted:
        steps = [i + np.cumsum(w) / np.sum(w) for i, w in enumerate(weights)]
        return cls(np.asarray(list_of), Ragged.of(choices), np.concatenate(steps))

    def __call__(self, true: np.ndarray, random: np.ndarray) -> np.ndarray:
        chosen = self.list_of[true]
        last = self.choices.ends[chosen] - 1  # the sum of the shares may be a little less than 1
        at = np.minimum(np.searchsorted(self.steps, chosen + random, side="right"), last)
        return self.choices.values[at].astype(np.int64)


def draw_by_parent(hierarchy: Hierarchy, classes: tuple[str, ...]) -> Draw:
    """The classes below the nearest ancestor that has others below it; without one, all.

    Raises:
      UserError: the hierarchy knows none of the classes.
    """
    lines = [hierarchy.ancestors(name) for name in classes]
    if not any(lines):
        raise UserError(f"{hierarchy.file}: no class has a parent there, such as {classes[0]!r}; its names must be "
                        "those of the classes")
    below: dict[str, list[int]] = {}
    for number, names in enumerate(lines):
        for name in names:
            below.setdefault(name, []).append(number)
    lists = {"": list(range(len(classes)))} | {name: below[name] for name in below if len(below[name]) > 1}
    place = {name: i for i, name in enumerate(lists)}
    list_of = [place[next((a for a in names if a in lists), "")] for names in lines]
    return DrawWeighted.of(np.array(list_of), list(lists.values()), [[1] * len(found) for found in lists.values()])


def draw_by_frequency(frequencies: np.ndarray) -> Draw:
    """All classes in proportion to their frequencies int64 ``[classes]``."""
    there = np.flatnonzero(frequencies)
    return DrawWeighted.of(np.zeros(len(frequencies), np.int64), [there.tolist()], [frequencies[there].tolist()])


def draw_by_confusion(file: str, classes: tuple[str, ...]) -> Draw:
    """The off-diagonal rows of a confusion matrix in a csv file with the columns true, given, weight.

    Raises:
      UserError: no such file or columns, an unknown class, a weight that is not a number of at least 0, or a class that
        is never given as another.
    """
    number = {name: i for i, name in enumerate(classes)}
    rows: list[dict[int, float]] = [{} for _ in classes]
    try:
        with Path(file).expanduser().open(newline="") as opened:
            reader = csv.DictReader(opened)
            if not {"true", "given", "weight"} <= set(reader.fieldnames or ()):
                raise UserError(f"{file} has the columns {reader.fieldnames}; expected true, given, weight")
            for row in reader:
                where = f"{file} line {reader.line_num}"
                for name in (row["true"], row["given"]):
                    if name not in number:
                        raise UserError(f"{where}: there is no class {name!r}{nearest(str(name), classes)}")
                try:
                    weight = float(row["weight"])
                except (TypeError, ValueError):
                    weight = -1.0
                if not 0 <= weight < math.inf:
                    raise UserError(f"{where}: weight is {row['weight']!r}; expected a number of at least 0")
                if row["true"] != row["given"] and weight:
                    rows[number[row["true"]]][number[row["given"]]] = weight
    except OSError as error:
        raise UserError(f"cannot read LabelNoise.confusion {file!r}: {error.strerror or error}") from None
    if empty := [name for name, row in zip(classes, rows, strict=True) if not row]:
        raise UserError(f"{file}: class {empty[0]!r} is never given as another ({len(empty)} such); give each class a "
                        "row with another label")
    return DrawWeighted.of(np.arange(len(classes)), [sorted(row) for row in rows],
                           [[row[c] for c in sorted(row)] for row in rows])
