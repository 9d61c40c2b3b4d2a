"""Labels that a trained network gave to the images of another source (Lee 2013; Xie et al. 2020).

``bvl pseudolabel`` writes two files: a csv file with a row per image that got labels, and beside it a json file with
the classes and how the labels were made.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Dataset, Example, Source, without_objects
from big_vision_lite.errors import BadImageError, UserError, nearest, reading
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.parse import read_bytes, read_json

COLUMNS = ("path", "labels", "confidence", "candidates", "probabilities", "given")
SEPARATOR = ";"
MAX_BYTES = 1 << 33


class PseudoLabel(NamedTuple):
    """A row: what is said about one image."""

    id: str
    labels: tuple[int, ...]
    confidence: float
    """Probability of the most probable label; 1 for labels that were given."""
    candidates: tuple[int, ...]
    """The most probable classes, most probable first."""
    probabilities: tuple[float, ...]
    """Of these; other classes share the rest."""
    given: bool
    """Whether the labels are the source's own, with which the network was trained."""


class HowMade(msgspec.Struct, kw_only=True):
    """The json file beside the csv file."""

    classes: tuple[str, ...]
    multi_label: bool
    run: str
    step: int
    fingerprint: str
    """Of the source."""
    threshold: float
    per_class: int | None = None
    images: int
    """Of the source."""
    labelled: int
    """Images with pseudo-labels."""
    given: int
    """Images with labels of their own."""
    unreadable: int = 0
    precision: float | None = None
    """Share of the pseudo-labels that are true; None where the truth is unknown."""
    recall: float | None = None
    """Share of the true labels of images without given ones that are pseudo-labels."""


def write_pseudo_labels(file: Path, rows: Iterable[PseudoLabel], how: HowMade) -> None:
    """Raises: UserError for a class whose name has the separator in it; OSError."""
    if odd := [name for name in how.classes if SEPARATOR in name]:
        raise UserError(f"the class {odd[0]!r} has {SEPARATOR!r} in its name, which separates labels; rename it")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        names = (SEPARATOR.join(how.classes[label] for label in labels) for labels in (row.labels, row.candidates))
        labels, candidates = names
        writer.writerow((row.id, labels, f"{row.confidence:.6g}", candidates,
                         SEPARATOR.join(f"{p:.6g}" for p in row.probabilities), int(row.given)))
    write_text(file.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(how), indent=2).decode() + "\n")
    write_text(file, text.getvalue())


def read_pseudo_labels(file: Path) -> tuple[HowMade, list[PseudoLabel]]:
    """Raises: UserError when a file is missing or malformed; the message says which row."""
    advice = "make it by: bvl pseudolabel RUN --source SOURCE --out FILE.csv"
    text = read_bytes(file, advice, MAX_BYTES).decode(errors="replace")
    how = read_json(file.with_suffix(".json"), HowMade, advice)
    number = {name: i for i, name in enumerate(how.classes)}

    def classes(names: str, line: int) -> tuple[int, ...]:
        for name in (parts := names.split(SEPARATOR)):
            if name not in number:
                raise UserError(f"{file} line {line}: {name!r} is none of the {len(number):,} classes in "
                                f"{file.with_suffix('.json').name}{nearest(name, number)}")
        return tuple(number[name] for name in parts)

    rows = []
    lines = csv.reader(io.StringIO(text))
    if (header := tuple(next(lines, ()))) != COLUMNS:
        raise UserError(f"{file} has the columns {','.join(header) or 'none'}; expected {','.join(COLUMNS)}, {advice}")
    for line, row in enumerate(lines, 2):
        with reading(f"{file} line {line}", f"expected {','.join(COLUMNS)}", ValueError):
            id_, labels, confidence, candidates, probabilities, given = row
            values = tuple(map(float, probabilities.split(SEPARATOR)))
            made = PseudoLabel(id_, classes(labels, line), float(confidence), classes(candidates, line), values,
                               bool(int(given)))
        if len(made.candidates) != len(values) or not all(0 <= value <= 1 for value in (made.confidence, *values)):
            raise UserError(f"{file} line {line}: {len(made.candidates)} candidates with probabilities {probabilities} "
                            f"and confidence {confidence}; expected as many, from 0 to 1")
        rows.append(made)
    return how, rows


@dataclasses.dataclass(frozen=True)
class PseudoLabels(Source):
    """The images of a source to which ``bvl pseudolabel`` gave labels, with these labels; others are left out.

    Each example has "confidence", and "candidates" with their "probabilities", from which `Classification` with
    ``soft_labels`` learns. Together with labelled images of another source: `Mixture`.
    """

    source: Source
    file: str = ""
    """The csv file; its json file is beside it."""
    min_confidence: float = 0.0
    """Leave out images with less; given labels have 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise UserError(f"PseudoLabels: min_confidence={self.min_confidence}; expected from 0 to 1")

    def open(self) -> PseudoLabelDataset:
        """Raises: UserError, as `read_pseudo_labels`; an id is not in the source, or no image is left."""
        file = Path(os.path.expanduser(self.file))
        how, rows = read_pseudo_labels(file)
        dataset = self.source.open()
        index_of = {id_: index for index, id_ in enumerate(ids_of(dataset))}
        if missing := [row.id for row in rows if row.id not in index_of]:
            raise UserError(f"PseudoLabels: {len(missing):,} of the {len(rows):,} ids in {self.file!r}, such as "
                            f"{missing[0]!r}, are not in {type(self.source).__name__}, whose first id is "
                            f"{next(iter(index_of))!r}; the file belongs to another source")
        rows = [row for row in rows if row.confidence >= self.min_confidence]
        if not rows:
            raise UserError(f"PseudoLabels: no image in {self.file!r} has min_confidence={self.min_confidence:g}; "
                            "lower it")
        rows.sort(key=lambda row: index_of[row.id])
        identity = repr((dataset.fingerprint, how.classes, self.min_confidence, rows)).encode(errors="surrogateescape")
        return PseudoLabelDataset(
            how.classes, how.multi_label, "pseudo-" + hashlib.blake2b(identity, digest_size=8).hexdigest(), dataset,
            np.array([index_of[row.id] for row in rows], np.int64), Ragged.of(sorted(row.labels) for row in rows),
            np.array([row.confidence for row in rows], np.float32), Ragged.of(row.candidates for row in rows),
            np.concatenate([np.float32(row.probabilities) for row in rows]))


@dataclasses.dataclass(eq=False)
class PseudoLabelDataset(Dataset):
    """Some examples of ``source``, with other labels."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    source: Dataset
    indices: np.ndarray
    """int64 ``[n]``, into the source."""
    label_rows: Ragged
    confidence: np.ndarray
    """float32 ``[n]``"""
    candidates: Ragged
    probabilities: np.ndarray
    """float32: of each of the candidates' values."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.read_one(range(len(self))[index])

    def read(self, indices: Sequence[int]) -> list[Example | BadImageError]:
        examples = self.source.read(self.indices[np.asarray(indices, np.int64)].tolist())
        return [example if isinstance(example, BadImageError) else self._labelled(example, index)
                for index, example in zip(indices, examples, strict=True)]

    def _labelled(self, example: Example, index: int) -> Example:
        stop = self.candidates.ends[index]
        start = stop - len(self.candidates.row(index))
        labelled = without_objects(example) | {
            "labels": self.label_rows.row(index), "confidence": self.confidence[index],
            "candidates": self.candidates.row(index), "probabilities": self.probabilities[start:stop]}
        labelled.pop("unlabelled", None)
        return labelled

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return self.source.labels(int(self.indices[index]))[0], self.label_rows.row(index)

    def image_sizes(self) -> np.ndarray:
        return self.source.image_sizes()[self.indices]


def ids_of(dataset: Dataset) -> Iterable[str]:
    """The id of each example, without reading images where the source can do that."""
    columns = dataset.label_columns()
    if columns is not None:
        return (columns.id(index) for index in range(len(columns)))
    return (dataset.labels(index)[0] for index in range(len(dataset)))
