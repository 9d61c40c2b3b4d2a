"""Rules that change the labels of many examples at once, without images; steps of `curation.steps` apply them."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from big_vision_lite.data.curation.hierarchy import Hierarchy
from big_vision_lite.data.ragged import Ragged, among, uniform
from big_vision_lite.errors import UserError, nearest, reading
from big_vision_lite.system.parse import read_text

LabelRule = Callable[[np.ndarray, Ragged], Ragged]
"""From the keys uint64 ``[n]`` and labels, in ``n`` rows, of examples to their new labels. Those of an example do not
depend on which others are processed with it."""

Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The distribution of wrong labels: from a true label int32 ``[k]`` and a uniform number ``[k]`` to a label int64
``[k]``. Labels that the image has already are drawn again."""

ATTEMPTS = 64
"""After this many draws of labels that the image already has, the true label is not replaced, or no wrong one added."""


@dataclasses.dataclass(frozen=True, eq=False)
class Remap:
    """Renumbers labels; a new number of -1 removes the label."""

    table: np.ndarray  # int32 [classes]; increases where it is not -1

    def __call__(self, keys: np.ndarray, labels: Ragged) -> Ragged:
        values = self.table[labels.values]
        return Ragged(labels.ends, values).where(values >= 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Replace:
    """Replaces each label by others, such as itself and its ancestors, or its parent."""

    by: Ragged  # row c: the new labels of class c
    classes: int

    def __call__(self, keys: np.ndarray, labels: Ragged) -> Ragged:
        new = self.by.take(labels.values)
        return Ragged.from_pairs(np.repeat(labels.rows(), new.counts()), new.values, len(keys), self.classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Corrupt:
    """Replaces labels by wrong ones; or, with a recall, removes some and adds wrong ones."""

    draw: Draw
    classes: int
    precision: float
    recall: float | None
    seed: int

    def __call__(self, keys: np.ndarray, labels: Ragged) -> Ragged:
        rows, true = labels.rows(), labels.values
        label_keys = keys[rows]
        stays = uniform(self.seed, label_keys, true, 0) < (self.precision if self.recall is None else self.recall)
        if self.recall is None:
            source = np.flatnonzero(~stays)  # the true label that each wrong one replaces
        else:  # as many wrong labels per true one as the precision allows
            mean = self.recall * (1 - self.precision) / self.precision
            extra = uniform(self.seed, label_keys, true, 1) < mean - int(mean)
            source = np.repeat(np.arange(len(true)), int(mean) + extra.astype(np.int64))
        if not len(source):
            return labels.where(stays)
        number = np.arange(len(source)) - np.searchsorted(source, source)  # of each among those of one true label
        wrong = self._wrong_labels(label_keys[source], rows[source], true[source], number, rows * self.classes + true)
        drawn = wrong >= 0
        if self.recall is None:
            stays[source[~drawn]] = True
        return Ragged.from_pairs(np.concatenate((rows[stays], rows[source][drawn])),
                                 np.concatenate((true[stays], wrong[drawn])), len(keys), self.classes)

    def _wrong_labels(self, keys: np.ndarray, rows: np.ndarray, true: np.ndarray, number: np.ndarray,
                      taken: np.ndarray) -> np.ndarray:
        """A label for each draw that its image does not have yet: int64 ``[k]``, -1 where none was found.

        Args:
          keys, rows: ``[k]``, of the image.
          true: ``[k]``, the true label that the wrong one is drawn for.
          number: ``[k]``, counts the draws for the same true label.
          taken: labels that the images have, as row * classes + label, ascending.
        """
        wrong = np.full(len(rows), -1, np.int64)
        todo = np.arange(len(rows))
        for attempt in range(ATTEMPTS):
            drawn = self.draw(true[todo], uniform(self.seed, keys[todo], true[todo], 2 + number[todo], attempt))
            pairs = rows[todo] * self.classes + drawn
            first = np.zeros(len(todo), np.bool_)
            first[np.unique(pairs, return_index=True)[1]] = True
            valid = first & (drawn >= 0) & ~among(pairs, taken)
            wrong[todo[valid]] = drawn[valid]
            todo = todo[~valid]
            if not len(todo):
                break
            taken = np.sort(np.concatenate((taken, pairs[valid])), kind="stable")
        return wrong


@dataclasses.dataclass(frozen=True)
class DrawUniformly:
    """All other classes, equally likely."""

    classes: int

    def __call__(self, true: np.ndarray, random: np.ndarray) -> np.ndarray:
        other = (random * (self.classes - 1)).astype(np.int64)
        return other + (other >= true)


@dataclasses.dataclass(frozen=True, eq=False)
class DrawWeighted:
    """From a weighted list for each class; classes may share one."""

    list_of: np.ndarray  # int64 [classes]
    choices: Ragged
    cumulative: np.ndarray  # float64 [m]: list i's cumulative shares, plus i, so that one search serves all lists

    @classmethod
    def of(cls, list_of: np.ndarray, choices: Sequence[Sequence[int]],
           weights: Sequence[Sequence[float]]) -> DrawWeighted:
        cumulative = [i + np.cumsum(w) / np.sum(w) for i, w in enumerate(weights)]
        return cls(np.asarray(list_of), Ragged.of(choices), np.concatenate(cumulative))

    def __call__(self, true: np.ndarray, random: np.ndarray) -> np.ndarray:
        lists = self.list_of[true]
        last = self.choices.ends[lists] - 1  # the sum of the shares may be a little less than 1
        at = np.minimum(np.searchsorted(self.cumulative, lists + random, side="right"), last)
        return self.choices.values[at].astype(np.int64)


def draw_by_parent(hierarchy: Hierarchy, classes: tuple[str, ...]) -> Draw:
    """The classes below the nearest ancestor that has other classes below it; if there is none, all classes.

    Raises:
      UserError: the hierarchy has none of the classes.
    """
    ancestors = hierarchy.ancestors_of(classes)
    below: dict[str, list[int]] = {}
    for number, names in enumerate(ancestors):
        for name in names:
            below.setdefault(name, []).append(number)
    lists = {"": list(range(len(classes)))} | {name: below[name] for name in below if len(below[name]) > 1}
    number_of = {name: i for i, name in enumerate(lists)}
    list_of = [number_of[next((a for a in names if a in lists), "")] for names in ancestors]
    return DrawWeighted.of(np.array(list_of), list(lists.values()), [[1] * len(labels) for labels in lists.values()])


def draw_by_frequency(frequencies: np.ndarray) -> Draw:
    """All classes in proportion to their frequencies int64 ``[classes]``."""
    present = np.flatnonzero(frequencies)
    return DrawWeighted.of(np.zeros(len(frequencies), np.int64), [present.tolist()], [frequencies[present].tolist()])


def draw_by_confusion(file: str, classes: tuple[str, ...]) -> Draw:
    """The rows of a confusion matrix without its diagonal, from a csv file with the columns true, given, weight.

    Raises:
      UserError: no such file or columns, an unknown class, a weight that is not a number of at least 0, or a class that
        is never confused with another.
    """
    number = {name: i for i, name in enumerate(classes)}
    rows: list[dict[int, float]] = [{} for _ in classes]
    columns = "LabelNoise.confusion is a csv file with the columns true, given, weight"
    reader = csv.DictReader(io.StringIO(read_text(Path(os.path.expanduser(file)), columns), newline=""))
    with reading(file, columns, csv.Error):
        if not {"true", "given", "weight"} <= set(reader.fieldnames or ()):
            raise UserError(f"{file} has the columns {reprlib.repr(reader.fieldnames)}; expected true, given, weight")
        for row in reader:
            where = f"{file} line {reader.line_num}"
            for name in (row["true"], row["given"]):
                if name not in number:
                    raise UserError(f"{where}: there is no class {reprlib.repr(name)}{nearest(str(name), classes)}")
            try:
                weight = float(row["weight"])
            except (TypeError, ValueError):
                weight = -1.0
            if not 0 <= weight < math.inf:
                raise UserError(f"{where}: weight is {reprlib.repr(row['weight'])}; expected a number of at least 0")
            if row["true"] != row["given"] and weight:
                rows[number[row["true"]]][number[row["given"]]] = weight
    if empty := [name for name, row in zip(classes, rows, strict=True) if not row]:
        raise UserError(f"{file}: class {empty[0]!r} is never given as another ({len(empty)} such classes); add a row "
                        "with another label for each")
    return DrawWeighted.of(np.arange(len(classes)), [sorted(row) for row in rows],
                           [[row[c] for c in sorted(row)] for row in rows])
