"""Curation by a score per example, which a trained network gives: which images are worth keeping?

``bvl data score`` writes the scores as an Arrow file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from big_vision_lite.data.curation.curated import Curated
from big_vision_lite.data.curation.steps import Curation
from big_vision_lite.data.curation.stored import stored_order
from big_vision_lite.data.ragged import random_bits
from big_vision_lite.errors import UserError, nearest, reading
from big_vision_lite.system.atomic import replacing
from big_vision_lite.system.parse import read_bytes

Score = Literal["loss", "margin", "distance", "duplicate"]
"""``loss``: of the run's head. ``margin``: probability of the least probable label minus that of the most probable
other class. ``distance``: 1 minus the cosine of the features and the mean features of the class (Sorscher et al. 2022,
with classes in place of clusters). ``duplicate``: highest cosine to the features of an earlier image of the class;
without the highest, one image of each group of near-duplicates stays (as in SemDeDup, Abbas et al. 2023)."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of the images of a source."""

    keys: np.ndarray
    """uint64 ``[n]``: `ragged.id_key` of each id."""
    scores: dict[str, np.ndarray]
    """float32 ``[n]`` by name; NaN for images that cannot be read."""
    fingerprint: str
    """Of the source, before curation."""
    run: str
    step: int

    def write(self, file: Path) -> None:
        """Raises: OSError."""
        table = pa.table({"key": self.keys, **self.scores}).replace_schema_metadata(
            {"fingerprint": self.fingerprint, "run": self.run, "step": str(self.step)})
        with replacing(file) as temporary, pa.OSFile(str(temporary), "wb") as sink, \
                pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def read(cls, file: str) -> ScoreTable:
        """Raises: UserError when the file is missing, or not one of scores."""
        advice = "make it by: bvl data score RUN --out FILE.arrow"
        content = read_bytes(Path(os.path.expanduser(file)), advice)
        with reading(repr(file), advice, (pa.ArrowException, OSError, KeyError, ValueError)):
            table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
            about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            columns = {name: np.asarray(table[name]) for name in table.column_names}
            return cls(columns.pop("key").astype(np.uint64), columns, about["fingerprint"], about["run"],
                       int(about["step"]))


@dataclasses.dataclass(frozen=True)
class KeepByScore(Curation):
    """Keeps the share of the examples with the highest or lowest scores; a smaller share is contained in a larger one.
    Images that could not be scored go first."""

    file: str = ""
    """What ``bvl data score`` wrote."""
    fraction: float = 0.5
    """Share of the examples to keep, above 0 to 1; rounded to a whole number, at least one."""
    which: Literal["high", "low"] = "high"
    """Keep examples with high scores or with low ones."""
    score: Score = "loss"
    stratified: bool = False
    """Keep the shares of the classes (of each image's first label). Otherwise easy classes may all but vanish."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"KeepByScore: fraction={self.fraction}; expected above 0 to 1")

    def identity(self) -> str:
        content = read_bytes(Path(os.path.expanduser(self.file)), "make it by: bvl data score RUN --out FILE.arrow")
        return f"{dataclasses.replace(self, file='')!r}{hashlib.sha256(content).hexdigest()}"

    def apply(self, data: Curated) -> Curated:
        table = ScoreTable.read(self.file)
        if table.fingerprint != data.source.fingerprint:
            raise UserError(f"KeepByScore: {self.file!r} has the scores of other data: {table.fingerprint}, this is "
                            f"{data.source.fingerprint}; score it: bvl data score {table.run} --out FILE.arrow")
        if self.score not in table.scores:
            raise UserError(f"KeepByScore: {self.file!r} has no score {self.score!r}"
                            + nearest(self.score, table.scores))
        keep = max(1, round(self.fraction * len(data)))
        order = stored_order(data.fingerprint, len(data.source), lambda: iter((self._best(data, table)[:keep],)))
        return data.then(order=order, report={"stage": "KeepByScore", "images": keep, "score": self.score,
                                              "which": self.which, "dropped": len(data) - keep})

    def _best(self, data: Curated, table: ScoreTable) -> np.ndarray:
        """All indices, those to keep first. Raises: UserError when some have no score."""
        indices = np.concatenate(list(data.order.chunks()))
        keys, by_key = data.index.keys_at(indices), np.argsort(table.keys)
        at = by_key[np.minimum(np.searchsorted(table.keys[by_key], keys), len(by_key) - 1)]
        if missing := int((table.keys[at] != keys).sum()):
            raise UserError(f"KeepByScore: {missing:,} of the {len(keys):,} images have no score in {self.file!r}; "
                            "score all of them: bvl data score RUN --source SOURCE")
        values = table.scores[self.score][at].astype(np.float64)
        random = random_bits(0, indices)  # between equal scores
        order = np.lexsort((random, -values if self.which == "high" else values))
        if not self.stratified:
            return indices[order]
        labels, first = data.labels_at(indices), np.full(len(indices), -1)
        first[labels.rows()[::-1]] = labels.values[::-1]  # the last one written is the first
        return indices[order[_by_share(first[order])]]


def _by_share(strata: np.ndarray) -> np.ndarray:
    """Positions in an order in which the first of each stratum come first, at the same share of all strata."""
    by_stratum = np.argsort(strata, kind="stable")
    _, of, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    rank = np.empty(len(strata))
    rank[by_stratum] = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.argsort((rank + 0.5) / sizes[of], kind="stable")
