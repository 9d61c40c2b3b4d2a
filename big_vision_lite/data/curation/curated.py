"""A dataset seen through curation: a selection of the source's examples, and rules that change their labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_lite.data.columns import Columns
from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.curation.label_rules import LabelRule, Remap
from big_vision_lite.data.curation.object_labels import renumber_objects
from big_vision_lite.data.curation.stored import Order, stored_counts
from big_vision_lite.data.ragged import Ragged, id_key
from big_vision_lite.data.source import SOFT_LABELS, Dataset, Example, Strata, without_objects
from big_vision_lite.errors import BadImageError


@dataclasses.dataclass(eq=False)
class Curated(Dataset):
    """The examples of ``source`` selected by ``order``, with labels changed by ``rules``.

    Attributes:
      fingerprint: of the source and all steps so far, also while a step is applied.
      rules: in the order in which they apply.
      reports: what each step did; part of data.json.
    """

    source: Dataset
    order: Order
    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    rules: tuple[LabelRule, ...] = ()
    reports: tuple[dict, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset) -> Curated:
        if isinstance(dataset, Curated):
            return dataset
        return cls(dataset, Order(len(dataset)), dataset.classes, dataset.multi_label, dataset.fingerprint)

    def then(self, rule: LabelRule | None = None, report: dict | None = None, **changed_fields: Any) -> Curated:
        """This dataset after one more step: with another rule, a report about the step, or other fields."""
        changed = dataclasses.replace(self, rules=(*self.rules, rule) if rule else self.rules,
                                      reports=(*self.reports, report) if report else self.reports, **changed_fields)
        if "index" in self.__dict__:
            changed.index = self.index
        return changed

    @property
    def unlabelled(self) -> bool:
        return self.source.unlabelled

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    @functools.cached_property
    def index(self) -> Columns:
        """Ids and labels of the source; read or made on first use."""
        return label_index(self.source)

    def labels_at(self, indices: np.ndarray) -> Ragged:
        """Labels after all rules, at the source's indices int64 ``[k]``."""
        return self._apply_rules(self.index.keys_at(indices), self.index.labels_at(indices))

    def _apply_rules(self, keys: np.ndarray, labels: Ragged) -> Ragged:
        for rule in self.rules:
            labels = rule(keys, labels)
        return labels

    def class_frequencies(self) -> np.ndarray:
        """int64 ``[classes]``: images of each class after the rules so far, in the whole source. It does not depend on
        which examples are selected, so that what is derived from it is the same for subsets of all sizes."""
        def count() -> np.ndarray:
            counts = np.zeros(len(self.classes), np.int64)
            for indices in Order(len(self.source)).chunks():
                counts += np.bincount(self.labels_at(indices).values, minlength=len(counts))
            return counts

        return stored_counts(f"{self.fingerprint}-{len(self.rules)}", len(self.source), count)

    def __len__(self) -> int:
        return self.order.length

    def __getitem__(self, index: int) -> Example:
        return self.read_one(range(len(self))[index])

    def read(self, indices: Sequence[int]) -> list[Example | BadImageError]:
        """Like the source's; labels are changed for all examples at once, in a few microseconds each."""
        examples = self.source.read(self.order(np.asarray(indices, np.int64)).tolist())
        if self.rules:
            good = [i for i, example in enumerate(examples) if not isinstance(example, BadImageError)]
            for i, relabelled in zip(good, self._relabel([examples[i] for i in good]), strict=True):
                examples[i] = relabelled
        return examples

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        (source_index,) = self.order(np.array([range(len(self))[index]])).tolist()
        id_, labels = self.source.labels(source_index)
        return id_, self._relabel([{"id": id_, "labels": labels}])[0]["labels"] if self.rules else labels

    def image_sizes(self) -> np.ndarray:
        return self.source.image_sizes()[self.order(np.arange(len(self)))]

    def strata(self) -> Strata | None:
        strata = self.source.strata()
        if strata is None or self.order.is_all:
            return strata
        return strata._replace(of=np.concatenate([strata.of[indices] for indices in self.order.chunks()]))

    def _relabel(self, examples: list[Example]) -> list[Example | BadImageError]:
        """The examples with the labels that the rules give them; an error in place of one with a bad mask."""
        keys = np.array([id_key(example["id"]) for example in examples], np.uint64)
        labels = self._apply_rules(keys, Ragged.of(example["labels"] for example in examples))
        relabelled: list[Example | BadImageError] = []
        for i, example in enumerate(examples):
            try:
                objects = {} if self._renumbering is None else renumber_objects(example, self._renumbering)
                kept = {key: value for key, value in without_objects(example).items() if key not in SOFT_LABELS}
                relabelled.append(kept | objects | {"labels": labels.row(i)})
            except BadImageError as error:
                relabelled.append(error)
        return relabelled

    @functools.cached_property
    def _renumbering(self) -> np.ndarray | None:
        """The new number of each class of the source, -1 for none; None if a rule does more than renumber: then the
        label of a single object is unknown."""
        table = np.arange(len(self.source.classes), dtype=np.int32)
        for rule in self.rules:
            if not isinstance(rule, Remap):
                return None
            table = np.where(table >= 0, rule.table[table], -1)
        return table

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("index", "_renumbering")}
