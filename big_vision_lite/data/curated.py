"""Records seen through curation: a choice of a source's indices, and rules that change labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from big_vision_lite.data.label_index import LabelIndex, label_index
from big_vision_lite.data.label_rules import LabelRule, Remap
from big_vision_lite.data.permutation import Permutation
from big_vision_lite.data.ragged import Ragged, key
from big_vision_lite.data.relabelled import relabelled
from big_vision_lite.data.source import OBJECTS, Example, Records
from big_vision_lite.errors import BadImageError

PIECE = 1 << 20
"""Examples whose labels are changed at a time when all of them are looked at."""


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """Which of a source's indices there are, in which order: all, the first of a permutation, or those listed."""

    length: int
    permutation: Permutation | None = None
    chosen: np.ndarray | None = None

    @property
    def is_all(self) -> bool:
        return self.permutation is None and self.chosen is None

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64 ``[k]`` to int64 ``[k]``."""
        if self.chosen is not None:
            return self.chosen[positions]
        return self.permutation(positions) if self.permutation else positions

    def pieces(self) -> Iterator[np.ndarray]:
        for start in range(0, max(self.length, 1), PIECE):
            yield self(np.arange(start, min(start + PIECE, self.length)))


@dataclasses.dataclass(eq=False)
class Curated(Records):
    """The examples of ``source`` at ``order``, with labels changed by ``rules``.

    Attributes:
      source: what was opened.
      rules: in the order in which they apply.
      reports: for each step, what it did; part of data.json.
    """

    source: Records
    order: Order
    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    rules: tuple[LabelRule, ...] = ()
    reports: tuple[dict, ...] = ()

    @classmethod
    def of(cls, records: Records) -> Curated:
        if isinstance(records, Curated):
            return records
        return cls(records, Order(len(records)), records.classes, records.multi_label, records.fingerprint)

    def then(self, order: Order | None = None, rule: LabelRule | None = None, classes: tuple[str, ...] | None = None,
             multi_label: bool | None = None, report: dict | None = None) -> Curated:
        """The same with another order, a further rule, or further words about it."""
        following = Curated(
            self.source, order or self.order, classes or self.classes,
            self.multi_label if multi_label is None else multi_label, self.fingerprint,
            (*self.rules, rule) if rule else self.rules, (*self.reports, report) if report else self.reports)
        if "index" in self.__dict__:
            following.index = self.index
        return following

    @property
    def unlabelled(self) -> bool:
        return self.source.unlabelled

    @functools.cached_property
    def index(self) -> LabelIndex:
        """Ids and labels of the source; made or read when first asked for."""
        return label_index(self.source)

    def labels_at(self, indices: np.ndarray) -> Ragged:
        """Labels after all rules, at indices of the source int64 ``[k]``."""
        labels, keys = self.index.labels.take(indices), self.index.keys[indices]
        for rule in self.rules:
            labels = rule(keys, labels)
        return labels

    def class_frequencies(self) -> np.ndarray:
        """int64 ``[classes]``: images of each class after the rules so far, in the whole source. It does not depend on
        the choice of examples, so that what is derived from it is equal for subsets of all sizes."""
        counts = np.zeros(len(self.classes), np.int64)
        for indices in Order(len(self.source)).pieces():
            counts += np.bincount(self.labels_at(indices).values, minlength=len(counts))
        return counts

    def __len__(self) -> int:
        return self.order.length

    def _source_index(self, index: int) -> int:
        index = range(len(self))[index]
        return index if self.order.is_all else int(self.order(np.array([index]))[0])

    def __getitem__(self, index: int) -> Example:
        example = self.source[self._source_index(index)]
        if not self.rules:
            return example
        if isinstance(changed := self._changed([example])[0], BadImageError):
            raise changed
        return changed

    def read(self, indices: Sequence[int]) -> list[Example | BadImageError]:
        """As the source's; labels are changed for all at once, which takes a few microseconds each."""
        found = self.source.read(self.order(np.asarray(indices, np.int64)).tolist())
        if self.rules:
            good = [i for i, example in enumerate(found) if not isinstance(example, BadImageError)]
            for i, example in zip(good, self._changed([found[i] for i in good]), strict=True):
                found[i] = example
        return found

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        id_, labels = self.source.labels(self._source_index(index))
        return id_, self._changed([{"id": id_, "labels": labels}])[0]["labels"] if self.rules else labels

    def image_sizes(self) -> np.ndarray:
        return self.source.image_sizes()[self.order(np.arange(len(self)))]

    def _changed(self, examples: list[Example]) -> list[Example | BadImageError]:
        keys = np.array([key(example["id"]) for example in examples], np.uint64)
        labels = Ragged.of(example["labels"] for example in examples)
        for rule in self.rules:
            labels = rule(keys, labels)
        changed: list[Example | BadImageError] = []
        for i, example in enumerate(examples):
            kept = {name: value for name, value in example.items() if name not in OBJECTS}
            try:
                objects = {} if self._renumbering is None else relabelled(example, self._renumbering)
                changed.append(kept | objects | {"labels": labels.row(i)})
            except BadImageError as error:
                changed.append(error)
        return changed

    @functools.cached_property
    def _renumbering(self) -> np.ndarray | None:
        """What the rules make of each class of the source, -1 for nothing; None where they do not only renumber: then
        nobody knows which object has which label."""
        table = np.arange(len(self.source.classes), dtype=np.int32)
        for rule in self.rules:
            if not isinstance(rule, Remap):
                return None
            table = np.where(table >= 0, rule.table[table], -1)
        return table

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("index", "_renumbering")}
