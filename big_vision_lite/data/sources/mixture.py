"""Several sources as one, each with a share of the training stream."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from big_vision_lite.data.columns import Columns, joined_ids, with_keys
from big_vision_lite.data.source import Dataset, Example, Source, Strata
from big_vision_lite.errors import BadImageError, UserError

MAX_SOURCES = 256


@dataclasses.dataclass(frozen=True)
class Mixture(Source):
    """The examples of all sources, which must have the same classes.

    The dataset has every example once: the first source's, then the second's, and so on. So ids are unique, curation
    and manifests count images and not draws, an evaluation scores each image once, and an epoch is as many images as
    the sources have together. Weights act later, in the order of training: each source has its own endless shuffled
    stream, and the position alone decides which source comes next and which of its examples. A source with a large
    weight is therefore seen more often per epoch, a source with a small one not completely, but nothing is repeated
    before all of that source was seen. Any number of processes, and a resumed run, see the same batches.

    Curation of the mixture selects among all examples; those that are left of a source share its weight. With images of
    several shapes (`data.buckets`), shares hold over all steps, and not within each.
    """

    sources: tuple[Source, ...] = ()
    """At least one; no `Mixture`."""
    weights: tuple[float, ...] | None = None
    """Shares of the images seen in training, relative to one another; None: in proportion to the sources' sizes, as
    one shuffled dataset."""
    names: tuple[str, ...] | None = None
    """With names, ids are ``NAME/ID``; None: those of the sources, which must then differ between them."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.sources) <= MAX_SOURCES or any(isinstance(source, Mixture) for source in self.sources):
            raise UserError(f"Mixture.sources has {', '.join(_kinds(self.sources)) or 'none'}; expected 1 to "
                            f"{MAX_SOURCES} sources that are no mixtures: list those of a mixture here")
        for field in ("weights", "names"):
            given = getattr(self, field)
            if given is not None and len(given) != len(self.sources):
                raise UserError(f"Mixture.{field} has {len(given)} entries for {len(self.sources)} sources; expected "
                                "one for each")
        if self.weights and not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise UserError(f"Mixture.weights is {self.weights}; expected numbers above 0: leave out a source that has "
                            "no weight")
        if self.names and (len(set(self.names)) < len(self.names) or any(not n or "/" in n for n in self.names)):
            raise UserError(f"Mixture.names is {self.names}; expected different names without '/'")

    def count_files(self) -> int:
        return sum(source.count_files() for source in self.sources)

    def index_files(self, numbers: Sequence[int]) -> None:
        for source in self.sources:
            count = source.count_files()
            if own := [number for number in numbers if 0 <= number < count]:
                source.index_files(own)
            numbers = [number - count for number in numbers]

    def open(self) -> MixtureDataset:
        """Raises: UserError when a source cannot be opened, or has other classes than the first; names the first class
        that differs."""
        datasets = [source.open() for source in self.sources]
        kinds = [f"source {number} ({kind})" for number, kind in enumerate(_kinds(self.sources))]
        first = datasets[0]
        for dataset, kind in zip(datasets[1:], kinds[1:], strict=True):
            for at, (expected, found) in enumerate(itertools.zip_longest(first.classes, dataset.classes)):
                if expected != found:
                    shown = ["no class" if name is None else f"the class {name!r}" for name in (found, expected)]
                    raise UserError(f"Mixture: {kind} has {shown[0]} at number {at}, but {kinds[0]} {shown[1]}; "
                                    f"expected the same {len(first.classes):,} classes in the same order in all")
            if dataset.unlabelled != first.unlabelled:
                raise UserError(f"Mixture: one of {kinds[0]} and {kind} has no annotations; expected all or none to "
                                "have them")
        return MixtureDataset(datasets, self.weights, self.names)


def _kinds(sources: Sequence[Source]) -> list[str]:
    return [type(source).__name__ for source in sources]


class MixtureDataset(Dataset):
    """The examples of all datasets, one dataset after the other."""

    def __init__(self, datasets: Sequence[Dataset], weights: tuple[float, ...] | None, names: tuple[str, ...] | None):
        self.datasets, self.weights, self.names = datasets, weights, names
        self.ends = np.cumsum([len(dataset) for dataset in datasets], dtype=np.int64)
        self.classes = datasets[0].classes
        self.multi_label = any(dataset.multi_label for dataset in datasets)
        self.unlabelled = datasets[0].unlabelled
        self.notes = tuple(note for dataset in datasets for note in dataset.notes)
        identity = repr(([dataset.fingerprint for dataset in datasets], names)).encode()
        self.fingerprint = "mixture-" + hashlib.blake2b(identity, digest_size=8).hexdigest()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """The dataset of an example, and its index in it."""
        index = range(len(self))[index]
        number = int(np.searchsorted(self.ends, index, side="right"))
        return number, index - (int(self.ends[number - 1]) if number else 0)

    def _id(self, number: int, id_: str) -> str:
        return f"{self.names[number]}/{id_}" if self.names else id_

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        number, at = self._place(index)
        id_, labels = self.datasets[number].labels(at)
        return self._id(number, id_), labels

    def column_pieces(self) -> Iterator[Columns] | None:
        pieces = []
        for dataset in self.datasets:
            columns = dataset.label_columns()
            pieces.append(dataset.column_pieces() if columns is None else columns.pieces())
        return None if None in pieces else self._named(pieces)

    def _named(self, pieces: Sequence[Iterator[Columns]]) -> Iterator[Columns]:
        for number, of_dataset in enumerate(pieces):
            for piece in of_dataset:
                ids = joined_ids(self._id(number, ""), piece.ids)
                yield with_keys(ids, piece.labels) if self.names else piece

    def __getitem__(self, index: int) -> Example:
        return self.read_one(index)

    def read(self, indices: Sequence[int]) -> list[Example | BadImageError]:
        """One read per dataset."""
        places = [self._place(index) for index in indices]
        read: dict[int, Example | BadImageError] = {}
        for number in {number for number, _ in places}:
            slots = [slot for slot, place in enumerate(places) if place[0] == number]
            for slot, example in zip(slots, self.datasets[number].read([places[s][1] for s in slots]), strict=True):
                if isinstance(example, BadImageError):
                    read[slot] = BadImageError(self._id(number, example.example_id), example.reason)
                else:
                    read[slot] = example | {"id": self._id(number, example["id"])}
        return [read[slot] for slot in range(len(places))]

    def image_sizes(self) -> np.ndarray:
        return np.concatenate([dataset.image_sizes() for dataset in self.datasets])

    def strata(self) -> Strata | None:
        if self.weights is None:
            return None
        sizes = np.diff(self.ends, prepend=0)
        return Strata(np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes), self.weights)
