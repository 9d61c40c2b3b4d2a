"""Data as an experimental variable: which examples of a source are used, and with which labels.

    Input(source, ..., curate=(Exclude("duplicates.txt"), ClassSubset(1000), NestedSubset(100_000), LabelNoise(0.8)))

Steps apply in the given order; `curation` puts them in the usual one. Each is a fixed function of its seed and the
examples' ids or indices, so that a larger set contains a smaller one, with the same labels. No image is read.

A `ClassSubset` applies to objects (boxes, masks) as to labels. Any other change of labels drops the objects from the
examples, because they would contradict the labels.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from big_vision_lite.data.curation.curated import Curated
from big_vision_lite.data.curation.hierarchy import Hierarchy, hierarchy_bytes
from big_vision_lite.data.curation.label_rules import (
    Corrupt,
    DrawUniformly,
    Remap,
    Replace,
    draw_by_confusion,
    draw_by_frequency,
    draw_by_parent,
)
from big_vision_lite.data.curation.permutation import Permutation
from big_vision_lite.data.curation.stored import Order, stored_order
from big_vision_lite.data.ragged import Ragged, among, id_key, random_bits
from big_vision_lite.data.source import Dataset
from big_vision_lite.data.sources.files import read_lines
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.system.fields import at_least, check
from big_vision_lite.system.parse import BOM, read_bytes


@dataclasses.dataclass(frozen=True)
class Curation(abc.ABC):
    """One step: a selection of examples, or a change of their labels."""

    @abc.abstractmethod
    def apply(self, data: Curated) -> Curated:
        """Raises: UserError when the step is impossible on this data."""

    def identity(self) -> str:
        """All that decides the outcome: of files their content, not their name."""
        return repr(self)


def curated(dataset: Dataset, steps: Sequence[Curation]) -> Dataset:
    """The dataset after all steps; without steps, the dataset itself.

    Raises:
      UserError: a step is impossible on this data.
    """
    if not steps:
        return dataset
    data = Curated.of(dataset)
    identity = dataset.fingerprint
    for step in steps:
        check(step)
        identity += f"\n{step.identity()}"
        fingerprint = "curated-" + hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        data = step.apply(data.then(fingerprint=fingerprint))
        if not len(data):
            raise UserError(f"{type(step).__name__} leaves none of the {len(dataset):,} examples; loosen it")
    return data


def curation(*, exclude: Exclude | None = None, ancestors: AncestorLabels | None = None,
             classes: ClassSubset | None = None, subset: NestedSubset | None = None,
             parents: ParentLabels | None = None, noise: LabelNoise | None = None) -> tuple[Curation, ...]:
    """The steps that are not None, in the usual order: duplicates are removed first, so that they never count towards a
    subset; classes are chosen before the subset, so that its size is what is trained on; parents replace classes after
    it, so that both vocabularies are learned from the same images; noise comes last."""
    return tuple(step for step in (exclude, ancestors, classes, subset, parents, noise) if step is not None)


@dataclasses.dataclass(frozen=True)
class NestedSubset(Curation):
    """A random subset; smaller subsets are contained in larger ones."""

    images: int | None = None
    """Number of examples; this or ``fraction``."""
    fraction: float | None = None
    """Share of the examples, above 0 to 1; rounded to a whole number."""
    seed: int = 0
    """Each seed gives another subset."""
    stratified: bool = False
    """Keep the shares of the classes (of each image's rarest label) at every size. False: the first examples of a keyed
    permutation of the source, in constant time and memory."""

    def __post_init__(self) -> None:
        if (self.images is None) == (self.fraction is None):
            raise UserError(f"NestedSubset: images={self.images}, fraction={self.fraction}; expected one of them")
        if not (self.images >= 1 if self.fraction is None else 0 < self.fraction <= 1):
            raise UserError(f"NestedSubset: images={self.images}, fraction={self.fraction}; expected 1 image or more, "
                            "or a fraction above 0 and up to 1")
        at_least(self, 0, "seed")

    def apply(self, data: Curated) -> Curated:
        images = self.images if self.images is not None else max(1, round(self.fraction * len(data)))
        if images > len(data):
            raise UserError(f"NestedSubset of {images:,} images, but there are {len(data):,}; expected at most that "
                            "many")
        if self.stratified:
            order = stored_order(data.fingerprint, len(data.source), lambda: iter((self._stratified(data)[:images],)))
        elif data.order.is_all:
            order = Order(images, Permutation(len(data.source), self.seed))
        else:
            order = stored_order(data.fingerprint, len(data.source), lambda: self._first(data, images))
        return data.then(order=order, report={"stage": "NestedSubset", "images": images})

    def _first(self, data: Curated, images: int) -> Iterator[np.ndarray]:
        """The first indices of the permuted source that earlier steps have kept, in pieces."""
        total = len(data.source)
        remaining = np.zeros(total, np.bool_)
        for indices in data.order.chunks():
            remaining[indices] = True
        for indices in Order(total, Permutation(total, self.seed)).chunks():
            first = indices[remaining[indices]][:images]
            yield first
            images -= len(first)
            if not images:
                return

    def _stratified(self, data: Curated) -> np.ndarray:
        """All indices, in an order in which each class is spread evenly."""
        indices = np.concatenate(list(data.order.chunks()))
        labels = data.labels_at(indices)
        frequency = np.bincount(labels.values, minlength=len(data.classes))
        stratum = np.full(len(indices), len(data.classes))  # of images without labels
        by_frequency = np.argsort(-frequency[labels.values], kind="stable")
        stratum[labels.rows()[by_frequency]] = labels.values[by_frequency]  # the last one written is the rarest
        random = random_bits(self.seed, indices)
        order = np.lexsort((random, stratum))
        sizes = np.bincount(stratum)
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        position = np.empty(len(order))
        position[order] = (rank + 0.5) / np.repeat(sizes, sizes)
        return indices[np.lexsort((random, position))]


@dataclasses.dataclass(frozen=True)
class Exclude(Curation):
    """Removes the examples listed in a file, such as near-duplicates of a test set."""

    file: str = ""
    """File of ids, one per line; ``#`` starts a comment. `bvl data duplicates` writes one."""

    def identity(self) -> str:
        ids = "\n".join(sorted(self._ids())).encode(errors="surrogateescape")
        return f"Exclude({hashlib.sha256(ids).hexdigest()})"

    def _ids(self) -> set[str]:
        stored = read_bytes(Path(os.path.expanduser(self.file)), "Exclude.file is a file with one id per line")
        lines = stored.removeprefix(BOM).decode(errors="surrogateescape").splitlines()
        return {line for line in lines if line.strip() and not line.startswith("#")}

    def apply(self, data: Curated) -> Curated:
        ids = self._ids()
        keys = np.sort(np.fromiter(map(id_key, ids), np.uint64, len(ids)))
        order = stored_order(data.fingerprint, len(data.source), lambda: (
            indices[~among(data.index.keys_at(indices), keys)] for indices in data.order.chunks()))
        excluded = len(data) - order.length
        if ids and not excluded:
            raise UserError(f"Exclude: none of the {len(ids):,} ids in {self.file!r}, such as {min(ids)!r}, is in the "
                            f"source, whose first id is {data.index.id(0)!r}; the file belongs to another source")
        return data.then(order=order, report={"stage": "Exclude", "images": order.length, "excluded": excluded,
                                              "ids_not_found": len(ids) - excluded})


@dataclasses.dataclass(frozen=True)
class ClassSubset(Curation):
    """Keeps some of the classes, as in the paper's study of 1,000 against 18,291. Boxes of other classes are removed,
    and their pixels become background in class masks."""

    keep: int | tuple[str, ...] | str = 1000
    """The names, or a text file with one name per line, or k for the k classes with the most images in the source."""
    empty: Literal["drop", "keep"] = "drop"
    """What to do with images that lose all their labels."""

    def identity(self) -> str:
        keep = self.keep if isinstance(self.keep, int) else self._names()
        return f"ClassSubset({keep!r}, {self.empty!r})"

    def _names(self) -> tuple[str, ...]:
        assert not isinstance(self.keep, int)
        return _names(self.keep, "ClassSubset.keep", "a number, names, or a text file with one name per line")

    def _mask(self, data: Curated) -> np.ndarray:
        """bool ``[classes]``: which of them to keep."""
        if not isinstance(self.keep, int):
            return _mask(data, self._names(), "ClassSubset.keep")
        classes = len(data.classes)
        if not 1 <= self.keep <= classes:
            raise UserError(f"ClassSubset.keep={self.keep}, but there are {classes} classes; expected 1 to {classes}")
        keep = np.zeros(classes, np.bool_)
        keep[np.argsort(-data.class_frequencies(), kind="stable")[: self.keep]] = True
        return keep

    def apply(self, data: Curated) -> Curated:
        keep = self._mask(data)
        rule = Remap(np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32))
        names = tuple(itertools.compress(data.classes, keep))
        multi_label = data.multi_label or self.empty == "keep"  # an image without any of the classes has no label
        data = data.then(rule=rule, classes=names, multi_label=multi_label)
        images, order = len(data), data.order
        if self.empty == "drop":
            filled = stored_order(data.fingerprint, len(data.source), lambda: (
                i[data.labels_at(i).counts() > 0] for i in data.order.chunks()))
            images = filled.length
            order = filled if images < len(data) else order
        return data.then(order=order, report={"stage": "ClassSubset", "images": images, "classes": len(names),
                                              "dropped": len(data) - images})


@dataclasses.dataclass(frozen=True)
class ImagesWith(Curation):
    """Keeps the images that have at least one of some labels, with all of their labels. These are the images that
    `ClassSubset` keeps of the same names: both vocabularies are then learned from the same images."""

    labels: tuple[str, ...] | str = ()
    """The names, or a text file with one name per line."""

    def identity(self) -> str:
        return f"ImagesWith({self._names()!r})"

    def _names(self) -> tuple[str, ...]:
        return _names(self.labels, "ImagesWith.labels", "names, or a text file with one name per line")

    def apply(self, data: Curated) -> Curated:
        mask = _mask(data, self._names(), "ImagesWith.labels")
        order = stored_order(data.fingerprint, len(data.source), lambda: (
            some[data.labels_at(some).where_any(mask)] for some in data.order.chunks()))
        return data.then(order=order,
                         report={"stage": "ImagesWith", "images": order.length, "dropped": len(data) - order.length})


def _names(names: tuple[str, ...] | str, field: str, expected: str) -> tuple[str, ...]:
    """Names, or those in a file of them. Raises: UserError when it cannot be read."""
    return names if isinstance(names, tuple) else tuple(read_lines(names, field, expected))


def _mask(data: Curated, names: tuple[str, ...], field: str) -> np.ndarray:
    """bool ``[classes]``: which of them are named. Raises: UserError for a name that is no class."""
    number = {name: i for i, name in enumerate(data.classes)}
    mask = np.zeros(len(number), np.bool_)
    for name in names:
        if name not in number:
            raise UserError(f"{field}: there is no class {name!r}" + nearest(name, data.classes))
        mask[number[name]] = True
    return mask


@dataclasses.dataclass(frozen=True)
class AncestorLabels(Curation):
    """Adds the ancestors of every label: an "apple" is also a "fruit". The paper does so with its hierarchy."""

    hierarchy: str = ""
    """File with the columns child and parent, or ``emoji_scenes`` for the emoji's groups; see `Hierarchy`. A class may
    have several parents."""
    unknown: Literal["refuse", "skip", "add"] = "refuse"
    """What to do with ancestors that are not among the source's classes: raise an error; skip them, but not their own
    ancestors; or add them as new classes, sorted, after the others."""

    def identity(self) -> str:
        return f"AncestorLabels({Hierarchy(self.hierarchy).digest}, {self.unknown!r})"

    def apply(self, data: Curated) -> Curated:
        ancestors = Hierarchy(self.hierarchy).ancestors_of(data.classes)
        known = set(data.classes)
        missing = sorted({name for names in ancestors for name in names} - known)
        if missing and self.unknown == "refuse":
            child = next(c for c, names in zip(data.classes, ancestors, strict=True) if missing[0] in names)
            raise UserError(f"{self.hierarchy}: {missing[0]!r}, an ancestor of {child!r}, is not a class "
                            f"({len(missing)} such){nearest(missing[0], data.classes)}; set AncestorLabels.unknown to "
                            "'skip' or 'add'")
        classes = (*data.classes, *missing) if self.unknown == "add" else data.classes
        number = {name: i for i, name in enumerate(classes)}
        implied = ({i, *(number[name] for name in names if name in number)} for i, names in enumerate(ancestors))
        rule = Replace(Ragged.of(map(sorted, implied)), len(classes))
        return data.then(rule=rule, classes=classes, multi_label=True,
                         report={"stage": "AncestorLabels", "classes": len(classes), "classes_added": len(classes) -
                                 len(data.classes)})


@dataclasses.dataclass(frozen=True)
class ParentLabels(Curation):
    """Replaces every label by its parent: an "apple" becomes a "fruit". The classes are then the parents, sorted.
    Evaluations need the same step."""

    hierarchy: str = ""
    """File with the columns child and parent; see `Hierarchy`. Every class has exactly one parent."""

    def identity(self) -> str:
        return f"ParentLabels({Hierarchy(self.hierarchy).digest})"

    def apply(self, data: Curated) -> Curated:
        parents, parent_of = Hierarchy(self.hierarchy).parents_of(data.classes)
        rule = Replace(Ragged(np.arange(1, len(parent_of) + 1), parent_of), len(parents))
        return data.then(rule=rule, classes=parents, report={"stage": "ParentLabels", "classes": len(parents)})


@dataclasses.dataclass(frozen=True)
class LabelNoise(Curation):
    """Wrong and missing labels. The achieved precision and recall are measured and written to data.json.

    With ``recall=None`` labels are replaced: each becomes wrong with probability 1 - precision, so that the recall
    equals the precision (Rolnick et al., 2017, and Mahajan et al., 2018, with ``kind="marginal"``). With a recall, each
    true label is kept with that probability, and wrong ones are added to reach the precision. A label that is wrong at
    one precision is wrong at every lower one.
    """

    precision: float = 0.8
    """Share of the given labels that are true; the paper estimates 0.8 for JFT-300M."""
    recall: float | None = None
    """Share of the true labels that are given; needs a multi-label head. None: replace labels."""
    kind: Literal["uniform", "parent", "marginal", "confusion"] = "uniform"
    """What a wrong label is drawn from: all other classes; the other classes below the nearest ancestor that has any;
    all others by their frequency in the source; or the rows of a confusion matrix."""
    hierarchy: str | None = None
    """For ``parent``: file with the columns child and parent."""
    confusion: str | None = None
    """For ``confusion``: csv file with the columns true, given, weight; its diagonal is ignored."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.precision <= 1 or not 0 < (1 if self.recall is None else self.recall) <= 1:
            raise UserError(f"LabelNoise: precision={self.precision}, recall={self.recall}; expected above 0 to 1")
        for kind, file in (("parent", self.hierarchy), ("confusion", self.confusion)):
            if (self.kind == kind) != (file is not None):
                name = "hierarchy" if kind == "parent" else "confusion"
                raise UserError(f"LabelNoise: kind={self.kind!r} with {name}={file!r}; kind={kind!r} needs a file for "
                                f"{name}, and no other kind does")
        at_least(self, 0, "seed")

    def identity(self) -> str:
        contents = [*([hierarchy_bytes(self.hierarchy)] if self.hierarchy else []),
                    *([read_bytes(Path(os.path.expanduser(self.confusion)))] if self.confusion else [])]
        files = [hashlib.sha256(content).hexdigest() for content in contents]
        return f"{dataclasses.replace(self, hierarchy=self.hierarchy and '', confusion=self.confusion and '')!r}{files}"

    def apply(self, data: Curated) -> Curated:
        if len(data.classes) < 2:
            raise UserError("LabelNoise: there is only one class, so no wrong label can be drawn; remove this step")
        draw = {"uniform": lambda: DrawUniformly(len(data.classes)),
                "parent": lambda: draw_by_parent(Hierarchy(self.hierarchy), data.classes),
                "marginal": lambda: draw_by_frequency(data.class_frequencies()),
                "confusion": lambda: draw_by_confusion(self.confusion, data.classes)}[self.kind]()
        rule = Corrupt(draw, len(data.classes), self.precision, self.recall, self.seed)
        return data.then(rule=rule, multi_label=data.multi_label or self.recall is not None,
                         report={"stage": "LabelNoise"})
