"""Data as an experimental variable: which examples of a source are used, and with which labels.

    Input(source, ..., curate=(Exclude("duplicates.txt"), Vocabulary(1000), NestedSubset(100_000), LabelNoise(0.8)))

Steps are taken in the order of the list; `curation` puts them in the usual one. Each is a fixed function of its seed
and the examples' ids or indices, so a larger set holds a smaller one, with the same labels. No image is read.

A `Vocabulary` chooses among objects (boxes, masks) as among labels. Where labels are changed in any other way, objects
are left out of the examples, for they would contradict them.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from big_vision_lite.data.curated import Curated, Order
from big_vision_lite.data.hierarchy import Hierarchy
from big_vision_lite.data.label_rules import (
    AddAncestors,
    Corrupt,
    DrawUniformly,
    Remap,
    draw_by_confusion,
    draw_by_frequency,
    draw_by_parent,
)
from big_vision_lite.data.permutation import Permutation
from big_vision_lite.data.ragged import key, mixed
from big_vision_lite.data.source import Records
from big_vision_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Curation(abc.ABC):
    """One step: a choice among the examples, or a change of their labels."""

    @abc.abstractmethod
    def apply(self, data: Curated) -> Curated:
        """Raises: UserError when the step is impossible on this data."""

    def identity(self) -> str:
        """What decides the outcome, with the content of files and not only their names."""
        return repr(self)


def curated(records: Records, steps: Sequence[Curation]) -> Records:
    """The records after all steps; without steps, the records themselves.

    Raises:
      UserError: a step is impossible on this data.
    """
    if not steps:
        return records
    data = Curated.of(records)
    for step in steps:
        data = step.apply(data)
        if not len(data):
            raise UserError(f"{type(step).__name__} leaves no example of {len(records):,}; loosen it")
    identity = "\n".join((records.fingerprint, *(step.identity() for step in steps)))
    return dataclasses.replace(
        data, fingerprint="curated-" + hashlib.blake2b(identity.encode(), digest_size=8).hexdigest())


def curation(*, exclude: Exclude | None = None, ancestors: AncestorLabels | None = None,
             vocabulary: Vocabulary | None = None, subset: NestedSubset | None = None,
             noise: LabelNoise | None = None) -> tuple[Curation, ...]:
    """The steps that are not None, in the usual order: duplicates go first, so that they never take a place in a
    subset; the vocabulary before the subset, so that its size is that of what is trained on; noise last."""
    return tuple(step for step in (exclude, ancestors, vocabulary, subset, noise) if step is not None)


@dataclasses.dataclass(frozen=True)
class NestedSubset(Curation):
    """So many examples, such that every smaller subset is contained in every larger one."""

    images: int | None = None
    """How many; this or ``fraction``."""
    fraction: float | None = None
    """Share of the examples, above 0 to 1; rounded to whole ones."""
    seed: int = 0
    """Another seed, another subset."""
    stratified: bool = False
    """Keep the shares of the classes (of each image's rarest label) at every size. The other kind takes the first
    examples of a keyed permutation of the source, in constant time and memory."""

    def __post_init__(self) -> None:
        if (self.images is None) == (self.fraction is None):
            raise UserError(f"NestedSubset: images={self.images}, fraction={self.fraction}; expected one of them")
        if not (self.images >= 1 if self.fraction is None else 0 < self.fraction <= 1):
            raise UserError(f"NestedSubset: images={self.images}, fraction={self.fraction}; expected 1 image or more, "
                            "or a fraction above 0 and up to 1")

    def apply(self, data: Curated) -> Curated:
        images = self.images if self.images is not None else max(1, round(self.fraction * len(data)))
        if images > len(data):
            raise UserError(f"NestedSubset of {images:,} images, and there are {len(data):,}; ask for at most so many")
        total = len(data.source)
        if self.stratified:
            order = Order(images, chosen=self._by_class(data)[:images])
        elif data.order.is_all:
            order = Order(images, Permutation(total, self.seed))
        else:
            order = Order(images, chosen=self._first(data, images))
        return data.then(order=order, report={"stage": "NestedSubset", "images": images})

    def _first(self, data: Curated, images: int) -> np.ndarray:
        """The first indices of the permutation of the whole source that are still there."""
        total = len(data.source)
        there = np.zeros(total, np.bool_)
        for indices in data.order.pieces():
            there[indices] = True
        permutation, found, count = Permutation(total, self.seed), [], 0
        for start in range(0, total, 1 << 20):
            indices = permutation(np.arange(start, min(start + (1 << 20), total)))
            found.append(indices[there[indices]])
            count += len(found[-1])
            if count >= images:
                break
        return np.concatenate(found)[:images]

    def _by_class(self, data: Curated) -> np.ndarray:
        """All indices, such that each class is spread evenly over them."""
        indices = np.concatenate(list(data.order.pieces()))
        labels = data.labels_at(indices)
        frequency = np.bincount(labels.values, minlength=len(data.classes))
        stratum = np.full(len(indices), len(data.classes))  # of images without labels
        by_frequency = np.argsort(-frequency[labels.values], kind="stable")
        stratum[labels.row_of()[by_frequency]] = labels.values[by_frequency]  # the last one written is the rarest
        random = mixed(self.seed, indices)
        order = np.lexsort((random, stratum))
        sizes = np.bincount(stratum)
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        place = np.empty(len(order))
        place[order] = (rank + 0.5) / np.repeat(sizes, sizes)
        return indices[np.lexsort((random, place))]


@dataclasses.dataclass(frozen=True)
class Exclude(Curation):
    """All examples but those named in a file, such as the near-duplicates of a test set."""

    manifest: str = ""
    """File of ids, one a line; ``#`` starts a comment. `bvl data duplicates` writes one."""

    def identity(self) -> str:
        ids = "\n".join(sorted(self._ids())).encode(errors="surrogateescape")
        return f"Exclude({hashlib.sha256(ids).hexdigest()})"

    def _ids(self) -> set[str]:
        try:
            lines = Path(self.manifest).expanduser().read_text(errors="surrogateescape").splitlines()
        except OSError as error:
            raise UserError(f"cannot read Exclude.manifest {self.manifest!r}: {error.strerror or error}; expected a "
                            "file with one id a line") from None
        return {line for line in lines if line.strip() and not line.startswith("#")}

    def apply(self, data: Curated) -> Curated:
        ids = self._ids()
        keys = np.fromiter((key(id_) for id_ in ids), np.uint64, len(ids))
        kept, before = [], len(data)
        for indices in data.order.pieces():
            kept.append(indices[~np.isin(data.index.keys[indices], keys)])
        kept = np.concatenate(kept)
        if ids and len(kept) == before:
            raise UserError(f"Exclude: none of the {len(ids):,} ids in {self.manifest!r}, such as {min(ids)!r}, is in "
                            f"the source, whose first id is {data.index.id(0)!r}; the manifest is of another source")
        return data.then(order=Order(len(kept), chosen=kept),
                         report={"stage": "Exclude", "images": len(kept), "excluded": before - len(kept),
                                 "ids_not_there": len(ids) - (before - len(kept))})


@dataclasses.dataclass(frozen=True)
class Vocabulary(Curation):
    """A part of the classes, as in the paper's study of 1,000 against 18,291. Boxes of other classes go, too, and in
    class masks they become background."""

    keep: int | tuple[str, ...] | str = 1000
    """The names, or a text file of them with one a line, or k for the k classes with the most images in the source."""
    empty: Literal["drop", "keep"] = "drop"
    """What becomes of images that lose all their labels."""

    def identity(self) -> str:
        keep = self.keep if isinstance(self.keep, int) else self._names()
        return f"Vocabulary({keep!r}, {self.empty!r})"

    def _names(self) -> tuple[str, ...]:
        if isinstance(self.keep, tuple):
            return self.keep
        try:
            lines = Path(self.keep).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read Vocabulary.keep {self.keep!r}: {error}; expected a number, names, or a "
                            "text file with one name a line") from None
        return tuple(line.strip() for line in lines if line.strip())

    def _kept(self, data: Curated) -> np.ndarray:
        """bool ``[classes]``"""
        classes = len(data.classes)
        keep = np.zeros(classes, np.bool_)
        if isinstance(self.keep, int):
            if not 1 <= self.keep <= classes:
                raise UserError(f"Vocabulary.keep={self.keep}, and there are {classes} classes; expected 1 to that")
            keep[np.argsort(-data.class_frequencies(), kind="stable")[: self.keep]] = True
            return keep
        number = {name: i for i, name in enumerate(data.classes)}
        for name in self._names():
            if name not in number:
                raise UserError(f"Vocabulary.keep: there is no class {name!r}" + nearest(name, data.classes))
            keep[number[name]] = True
        return keep

    def apply(self, data: Curated) -> Curated:
        keep = self._kept(data)
        rule = Remap(np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32), int(keep.sum()))
        names = tuple(name for name, kept in zip(data.classes, keep, strict=True) if kept)
        multi_label = data.multi_label or self.empty == "keep"  # an image of none of the classes has no single label
        data = data.then(rule=rule, classes=names, multi_label=multi_label)
        before, order = len(data), None
        if self.empty == "drop":
            indices = np.concatenate([i[data.labels_at(i).counts() > 0] for i in data.order.pieces()])
            order = Order(len(indices), chosen=indices) if len(indices) < before else None
        data = data.then(order=order)
        return data.then(report={"stage": "Vocabulary", "images": len(data), "classes": len(names),
                                 "dropped": before - len(data)})


@dataclasses.dataclass(frozen=True)
class AncestorLabels(Curation):
    """Every label also counts as its ancestors: "apple" is also "fruit". The paper does so with its hierarchy."""

    hierarchy: str = ""
    """File of two columns, child and parent; see `Hierarchy`. A class may have several parents."""
    unknown: Literal["refuse", "skip", "add"] = "refuse"
    """Ancestors that are not among the source's classes: an error that names one; no label, though their own ancestors
    still count; or new classes, after the others and sorted."""

    def identity(self) -> str:
        return f"AncestorLabels({Hierarchy(self.hierarchy).digest}, {self.unknown!r})"

    def apply(self, data: Curated) -> Curated:
        hierarchy = Hierarchy(self.hierarchy)
        ancestors = [hierarchy.ancestors(name) for name in data.classes]
        known = set(data.classes)
        missing = sorted({name for names in ancestors for name in names} - known)
        if not any(ancestors):
            raise UserError(f"{self.hierarchy}: no class has a parent there, such as {data.classes[0]!r}; the file "
                            f"names {next(iter(hierarchy.parents))!r}; its names must be those of the classes")
        if missing and self.unknown == "refuse":
            child = next(c for c, names in zip(data.classes, ancestors, strict=True) if missing[0] in names)
            raise UserError(f"{self.hierarchy}: {missing[0]!r}, an ancestor of {child!r}, is not a class "
                            f"({len(missing)} such){nearest(missing[0], data.classes)}; choose "
                            "AncestorLabels.unknown = 'skip' or 'add'")
        classes = (*data.classes, *missing) if self.unknown == "add" else data.classes
        number = {name: i for i, name in enumerate(classes)}
        rule = AddAncestors.of([[i, *(number[a] for a in names if a in number)] for i, names in enumerate(ancestors)],
                               len(classes))
        return data.then(rule=rule, classes=classes, multi_label=True,
                         report={"stage": "AncestorLabels", "classes": len(classes), "classes_added": len(classes) -
                                 len(data.classes)})


@dataclasses.dataclass(frozen=True)
class LabelNoise(Curation):
    """Wrong and missing labels. What was achieved is measured and written to data.json.

    With ``recall=None`` labels are replaced: each turns wrong with probability 1 - precision, and the recall falls to
    the precision with it (Rolnick et al., 2017, and Mahajan et al., 2018, with ``kind="marginal"``). With a recall,
    each true label is kept with that probability, and wrong ones are added up to the precision. A label that is wrong
    at one precision is wrong at every lower one.
    """

    precision: float = 0.8
    """Share of the given labels that are true; the paper estimates 0.8 for JFT-300M."""
    recall: float | None = None
    """Share of the true labels that are given; needs a head for many labels an image. None: replace labels."""
    kind: Literal["uniform", "parent", "marginal", "confusion"] = "uniform"
    """What a wrong label is drawn from: all other classes; the classes below the nearest ancestor that has others
    below it; all others by their frequency in the source; or the rows of a confusion matrix."""
    hierarchy: str | None = None
    """For ``parent``: file of two columns, child and parent."""
    confusion: str | None = None
    """For ``confusion``: csv file with the columns true, given, weight; what is on the diagonal is left out."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.precision <= 1 or not 0 < (1 if self.recall is None else self.recall) <= 1:
            raise UserError(f"LabelNoise: precision={self.precision}, recall={self.recall}; expected above 0 to 1")
        for kind, file in (("parent", self.hierarchy), ("confusion", self.confusion)):
            if (self.kind == kind) != (file is not None):
                name = "hierarchy" if kind == "parent" else "confusion"
                raise UserError(f"LabelNoise: kind={self.kind!r} with {name}={file!r}; kind={kind!r} and a file for "
                                f"{name} go together")

    def identity(self) -> str:
        files = [hashlib.sha256(Path(f).expanduser().read_bytes()).hexdigest() for f in (self.hierarchy, self.confusion)
                 if f and Path(f).expanduser().is_file()]
        return f"{dataclasses.replace(self, hierarchy=self.hierarchy and '', confusion=self.confusion and '')!r}{files}"

    def apply(self, data: Curated) -> Curated:
        if len(data.classes) < 2:
            raise UserError("LabelNoise: there is one class, and no wrong label to draw")
        draw = {"uniform": lambda: DrawUniformly(len(data.classes)),
                "parent": lambda: draw_by_parent(Hierarchy(self.hierarchy), data.classes),
                "marginal": lambda: draw_by_frequency(data.class_frequencies()),
                "confusion": lambda: draw_by_confusion(self.confusion, data.classes)}[self.kind]()
        rule = Corrupt(draw, len(data.classes), self.precision, self.recall, self.seed)
        return data.then(rule=rule, multi_label=data.multi_label or self.recall is not None,
                         report={"stage": "LabelNoise"})
