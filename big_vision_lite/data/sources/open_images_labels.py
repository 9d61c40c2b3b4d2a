"""The label tables of Open Images as columns: millions of rows (image, class, confidence), streamed through Arrow.

Each row becomes one 64-bit number, image x classes x kind, and one sort groups them: 8 bytes per row, twice while they
are put together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from big_vision_lite.data.columns import Columns, id_keys
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.sources.csv_table import CsvTable
from big_vision_lite.errors import UserError

ID_LENGTH = 16
MACHINE, CONFIRMED, REJECTED = range(3)
"""Kinds of rows; of an image and class, the highest kind counts."""
_KINDS = 4
_PIECE = 1 << 20
_COLUMNS = ("ImageID", "LabelName", "Confidence")
_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


@dataclasses.dataclass
class LabelCounts:
    """What became of the rows."""

    rows: int = 0
    below_confidence: int = 0
    """Machine-made rows."""
    other_classes: int = 0
    without_image: int = 0
    rejected: int = 0
    """Rows by people who did not see the class; they also remove the machine's label."""
    missing_images: int = 0
    """Images that have labels and no file."""
    unlabelled_images: int = 0
    """Images that have a file and no label, which are left out."""


@dataclasses.dataclass
class LabelTable:
    """Reads the csv files of a split.

    Args:
      files: (path, whether the labels are a machine's) of each.
      classes: their LabelName.
      images: uint64 ``[n]``, sorted: the ids of the images that there are, see `packed_ids`.
      min_confidence: machine-made labels of a lower one do not count.
    """

    files: Sequence[tuple[Path, bool]]
    classes: Sequence[str]
    images: np.ndarray
    min_confidence: float
    counts: LabelCounts = dataclasses.field(default_factory=LabelCounts)

    def columns(self) -> Iterator[Columns]:
        """Ids and labels of the images that have any, in the order of their ids.

        Raises:
          UserError: a file cannot be read, or a row is malformed.
        """
        rows = np.concatenate([np.zeros(0, np.int64), *self._rows()])
        rows.sort()
        labelled = 0
        for start, stop in self._pieces(rows):
            pairs, kinds = np.divmod(rows[start:stop], _KINDS)
            last = np.append(pairs[1:] != pairs[:-1], True)  # of an image and class
            images, labels = np.divmod(pairs[last & (kinds != REJECTED)], len(self.classes))
            if not len(images):
                continue
            first = np.append(True, images[1:] != images[:-1])
            ends = np.append(np.flatnonzero(first)[1:], len(images))
            ids = text_ids(self.images[images[first]])
            labelled += len(ids)
            yield Columns(Ragged(ends, labels.astype(np.int32)), id_keys(ids), ids)
        self.counts.unlabelled_images = len(self.images) - labelled

    def _pieces(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Ranges of sorted rows that end where an image does."""
        per_image, start = len(self.classes) * _KINDS, 0
        while start < len(rows):
            stop = min(start + _PIECE, len(rows))
            if stop < len(rows):
                stop = int(np.searchsorted(rows, (rows[stop - 1] // per_image + 1) * per_image))
            yield start, stop
            start = stop

    def _rows(self) -> Iterator[np.ndarray]:
        """int64: the rows that count, as numbers."""
        number = {name: i for i, name in enumerate(self.classes)}
        missing = [np.zeros(0, np.uint64)]
        for path, by_machine in self.files:
            table, before = CsvTable(str(path), path, "labels", f"columns {', '.join(_COLUMNS)} in UTF-8"), 0
            if absent := [name for name in _COLUMNS if name not in table.names]:
                raise UserError(f"{path} has the columns {', '.join(table.names) or 'none'}; expected "
                                f"{', '.join(_COLUMNS)}, and there is no {absent[0]}")
            for ids, names, confidences in table.batches(_COLUMNS):
                images, valid = packed_ids(ids)
                confidence = _numbers(confidences)
                wrong = ~valid | pc.is_null(names).to_numpy(zero_copy_only=False) | ~(
                    confidence <= 1 if by_machine else (confidence == 0) | (confidence == 1))
                if wrong.any():
                    at = int(wrong.argmax())
                    row = [column[at].as_py() for column in (ids, names, confidences)]
                    raise UserError(f"{path} line {table.line(before + at)}: {row}; expected an id of {ID_LENGTH} hex "
                                    f"digits, a class, and a confidence {'from 0 to 1' if by_machine else 'of 0 or 1'}")
                before += len(ids)
                known, kept = self._select(images, _classes(names, number), confidence, by_machine)
                missing.append(np.unique(images[~known]))
                yield kept
            missing = [np.unique(np.concatenate(missing))]
        self.counts.missing_images = len(missing[0])

    def _select(self, images: np.ndarray, classes: np.ndarray, confidence: np.ndarray,
                by_machine: bool) -> tuple[np.ndarray, np.ndarray]:
        """Which rows are of images that there are, bool, and those that count, as numbers."""
        heads = np.append(True, images[1:] != images[:-1])  # rows of an image follow one another
        at = np.minimum(np.searchsorted(self.images, images[heads]), len(self.images) - 1)
        found = self.images[at] == images[heads]
        run = np.cumsum(heads) - 1
        known, image = found[run], at[run].astype(np.int64)
        counts, enough = self.counts, confidence >= self.min_confidence
        kinds = np.where(confidence == 0, REJECTED, CONFIRMED)
        if by_machine:
            kinds = np.full(len(images), MACHINE)
            counts.below_confidence += int((~enough).sum())
        else:
            enough = np.ones(len(images), np.bool_)
            counts.rejected += int((kinds == REJECTED).sum())
        counts.rows += len(images)
        counts.other_classes += int((classes < 0).sum())
        counts.without_image += int((~known).sum())
        keep = known & enough & (classes >= 0)
        return known, ((image * len(self.classes) + classes) * _KINDS + kinds)[keep]


def packed_ids(ids: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of 16 lower-case hex digits as numbers, uint64 ``[n]``, and which ones are such ids, bool ``[n]``.

    >>> numbers, valid = packed_ids(pa.array(["00000000000000ff", "0f", None]))
    >>> numbers.tolist(), valid.tolist()
    ([255, 0, 0], [True, False, False])
    """
    valid = pc.fill_null(pc.equal(pc.binary_length(ids), ID_LENGTH), False)
    rest = "0" * ID_LENGTH
    texts = ids if pc.all(valid).as_py() else pc.if_else(valid, ids, rest)
    texts = texts.cast(pa.binary()).cast(pa.binary(ID_LENGTH))
    digits = np.frombuffer(texts.buffers()[1], np.uint8)[texts.offset * ID_LENGTH :][: len(texts) * ID_LENGTH]
    nibbles = _NIBBLE[digits.reshape(-1, ID_LENGTH)]
    good = valid.to_numpy(zero_copy_only=False) & (nibbles < 16).all(1)
    joined = (nibbles[:, ::2] << 4 | nibbles[:, 1::2] & 15).view(">u8")[:, 0]
    return np.where(good, joined, 0).astype(np.uint64), good


def text_ids(numbers: np.ndarray) -> pa.LargeBinaryArray:
    """The inverse of `packed_ids`."""
    octets = numbers.astype(">u8").view(np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[np.stack((octets >> 4, octets & 15), -1).ravel()]
    ends = pa.array(np.arange(len(numbers) + 1) * ID_LENGTH, pa.int64())
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(numbers),
                                            [None, ends.buffers()[1], pa.py_buffer(digits)])


def _numbers(texts: pa.StringArray) -> np.ndarray:
    """float64 ``[n]``; nan where there is no number of at least 0."""
    encoded = texts.dictionary_encode()
    values = [np.nan]
    for text in encoded.dictionary.to_pylist():
        try:
            values.append(float(text))
        except ValueError:
            values.append(np.nan)
    numbers = np.array(values)[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False) + 1]
    return np.where(numbers >= 0, numbers, np.nan)


def _classes(names: pa.StringArray, number: dict[str, int]) -> np.ndarray:
    """int64 ``[n]``: the class of each row, -1 for others."""
    encoded = names.dictionary_encode()
    table = np.array([-1, *(number.get(name, -1) for name in encoded.dictionary.to_pylist())])
    return table[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False) + 1]
