"""Metrics of image classification, with any number of labels per image (mAP, precision@k) or one (top-1, top-5).

Batches of numpy arrays go in by ``add``, metrics come out of ``result``. Rows whose ``mask`` is False are padding: they
may hold anything and are ignored.

Equal scores never help a model. Within a class they share one threshold; within an image, ties rank wrong classes
before true ones, so a model with constant output has a top-1 accuracy of 0.
"""

from __future__ import annotations

import errno
import io
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32, Num

from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.details import Details, class_scores, curve

TOP = 100
"""Predictions per image that mAP@100 considers."""

PERMUTATIONS = 5
"""Random permutations over which mAP by chance is averaged."""
MEMORY_BUDGET = 1 << 30
"""Bytes of scores that are held in memory; more go to a file."""

_TILE_BYTES = 64 << 20  # small in memory, yet long transfers for the disk
_FEW = 16  # up to about this many thresholds, counting one by one is faster than sorting the values


class MultiLabelMetrics:
    """Ranking metrics for images with any number of labels.

    Keeps all scores as float32. If they exceed `MEMORY_BUDGET` they go to an unnamed temporary file of
    ``examples * classes * 4`` bytes, which is deleted with the accumulator. If the system's temporary folder is in RAM,
    name another one in the environment variable TMPDIR.

    Args:
      classes: number of classes.
      examples: maximum number of rows that will be added, without padding.

    Raises:
      UserError: sizes are out of range, or the temporary folder is missing or lacks space.
    """

    def __init__(self, classes: int, examples: int):
        _check_sizes(classes, examples)
        self.classes = classes
        self.examples = examples
        self._store = _Store(classes, examples)
        self._pairs: list[Int[np.ndarray, " pairs"]] = []  # class * examples + image
        self._hits = {k: 0 for k in (1, 5) if k <= classes}
        self._images_with_positives = 0
        self._top_sum = 0.0

    def add(self, scores: Float32[np.ndarray, "b classes"], labels: Int32[np.ndarray, "b k"],
            mask: Bool[np.ndarray, " b"]) -> None:
        """Add one batch. ``labels`` are padded with -1; a label repeated within a row counts once.

        Raises:
          UserError: an unmasked row has a NaN score or a label out of range; a shape or dtype is wrong; there are more
            rows than ``examples``; the disk is full.
        """
        scores, labels = _unmasked(scores, labels, mask, self.classes, self.examples - self._store.count)
        rows, slots = np.nonzero(labels >= 0)
        key = np.unique(rows * self.classes + labels[rows, slots])
        rows, true = key // self.classes, key % self.classes
        first = self._store.count
        self._store.append(scores)
        self._pairs.append(true * self.examples + first + rows)
        labelled, starts = np.unique(rows, return_index=True)
        for row, classes in zip(labelled, np.split(true, starts[1:]), strict=False):
            self._add_image(scores[row], classes)

    def _add_image(self, scores: Float32[np.ndarray, " classes"], true: Int[np.ndarray, " p"]) -> None:
        true = true[np.argsort(-scores[true], kind="stable")]
        true_scores = scores[true]
        place = np.arange(1, len(true) + 1)
        rank = place + _at_least(scores, true_scores) - _at_least(true_scores, true_scores)  # after tied wrong classes
        self._images_with_positives += 1
        for k in self._hits:
            self._hits[k] += int(np.count_nonzero(rank <= k))
        self._top_sum += (place / rank)[rank <= TOP].sum() / min(len(true), TOP)

    def result(self) -> dict[str, float | None]:
        """The metrics so far, all but the two counts in [0, 1]; None without an image with a label.

        "mAP": mean over classes with a positive of their average precision: the mean over positives of the precision at
          their own score s, (positives >= s) / (all >= s). This is the sum over thresholds of (R_i - R_{i-1}) P_i,
          without VOC's monotone envelope.
        "mAP_instance": the same, each class weighted by its number of positives.
        "precision@k": share of an image's k best predictions that are true, mean over images with a label.
        "mAP@100": mean over images with a label of the average precision of their best 100 predictions: with m true
          classes in an image, r the rank of a class (from 1) and prec(r) the share of true classes among the first r,
          1 / min(m, 100) times the sum of prec(r) over the true classes with r up to 100. The best ranking gives 1.
          FastEval14k (Chollet 2017, "Xception") also weights classes by frequency, but gives no formula.
        "classes_with_positives", "images_with_positives": how many the means are over.
        """
        precision, positives = self._class_precisions(np.arange(self._store.count)[None])
        images = self._images_with_positives
        return {
            "mAP": float(precision.mean()) if images else None,
            "mAP_instance": float(np.average(precision[0], weights=positives)) if images else None,
            f"mAP@{TOP}": float(self._top_sum / images) if images else None,
            **{f"precision@{k}": hits / (k * images) if images else None for k, hits in self._hits.items()},
            "classes_with_positives": float(len(positives)),
            "images_with_positives": float(images),
        }

    def details(self, names: Sequence[str]) -> Details:
        """Average precision of each class that occurs, and precision against recall over all pairs of image and class,
        at thresholds on the score."""
        precision, positives = self._class_precisions(np.arange(self._store.count)[None])
        if not len(positives):
            return {}
        pairs = np.sort(np.concatenate(self._pairs))
        present = np.unique(pairs // self.examples)
        scores, counts = np.full(self.classes, np.nan), np.zeros(self.classes, np.int64)
        scores[present], counts[present] = precision[0], positives
        edges = np.concatenate([[-np.inf], np.linspace(-30, 30, 3000), [np.inf]])  # of logits
        every, right = np.zeros((2, len(edges) - 1), np.int64)
        for low, block in self._store.blocks():
            every += np.histogram(block, edges)[0]
            start, stop = np.searchsorted(pairs, (low * self.examples, (low + len(block)) * self.examples))
            own = pairs[start:stop]
            right += np.histogram(block[own // self.examples - low, own % self.examples], edges)[0]
        found, correct = every[::-1].cumsum(), right[::-1].cumsum()
        steps = np.flatnonzero(np.diff(correct, prepend=0))  # where recall grows
        return {"metric": "average precision", "classes": class_scores(names, scores, counts),
                "curve": curve("recall", "precision", correct[steps] / correct[-1], correct[steps] / found[steps])}

    def chance(self) -> float | None:
        """mAP by chance: the mean over `PERMUTATIONS` random permutations of the rows of scores; None without an image
        with a label.

        Rows move as a whole, which keeps the model's preferences for classes and its ties.
        """
        if not self._images_with_positives:
            return None
        rng = np.random.default_rng(0)
        permuted = np.stack([rng.permutation(self._store.count) for _ in range(PERMUTATIONS)])
        return float(self._class_precisions(permuted)[0].mean())

    def _class_precisions(self, rows: Int[np.ndarray, "q images"]
                          ) -> tuple[Float64[np.ndarray, "q present"], Int[np.ndarray, " present"]]:
        """Average precision and number of positives of each class that occurs, for image i with the scores of image
        ``rows[q, i]``."""
        pairs = np.sort(np.concatenate([np.zeros(0, np.int64), *self._pairs]))
        present, starts, positives = np.unique(pairs // self.examples, return_index=True, return_counts=True)
        images = np.split(pairs % self.examples, starts[1:])
        precision = np.empty((len(rows), len(present)))
        done = 0
        for low, block in self._store.blocks():
            while done < len(present) and present[done] < low + len(block):
                scores = block[present[done] - low]
                precision[:, done] = _average_precisions(scores, scores[rows[:, images[done]]])
                done += 1
        return precision, positives


class SingleLabelMetrics:
    """Top-1 and top-5 accuracy for images with exactly one label.

    An image is correct in the top k when fewer than k other classes score at least as high as the true one.

    Raises:
      UserError: ``classes`` or ``examples`` (see `MultiLabelMetrics`) is below 1.
    """

    def __init__(self, classes: int, examples: int):
        _check_sizes(classes, examples)
        self.classes = classes
        self.examples = examples
        self._count = 0
        self._correct = {k: 0 for k in (1, 5) if k <= classes}

    def add(self, scores: Float32[np.ndarray, "b classes"], labels: Int32[np.ndarray, "b k"],
            mask: Bool[np.ndarray, " b"]) -> None:
        """Add one batch; ``labels`` are padded with -1.

        Raises:
          UserError: as for ``MultiLabelMetrics.add``, and an unmasked row without exactly one label.
        """
        scores, labels = _unmasked(scores, labels, mask, self.classes, self.examples - self._count)
        counts = (labels >= 0).sum(axis=1)
        if (counts != 1).any():
            row = np.flatnonzero(counts != 1)[0]
            raise UserError(f"an image has {counts[row]} labels {labels[row].tolist()}, expected exactly one; use "
                            "MultiLabelMetrics for data with several labels per image")
        true_scores = np.take_along_axis(scores, labels.max(axis=1, keepdims=True), axis=1)
        others = (scores >= true_scores).sum(axis=1) - 1
        self._count += len(scores)
        for k in self._correct:
            self._correct[k] += int(np.count_nonzero(others < k))

    def result(self) -> dict[str, float | None]:
        """``{"top1": ..., "top5": ...}`` in [0, 1], None without an image; no "top5" below 5 classes."""
        return {f"top{k}": correct / self._count if self._count else None for k, correct in self._correct.items()}


class SuperclassMetrics:
    """Top-1 and top-5 accuracy among superclasses, by the sum of the probabilities of each one's classes.

    Args:
      superclass_of: int32 ``[classes]``, the index of each class's superclass; each has at least one class.
      examples: as for `SingleLabelMetrics`.
    """

    def __init__(self, superclass_of: Int32[np.ndarray, " classes"], examples: int):
        self._superclass_of = superclass_of
        self._order = np.argsort(superclass_of, kind="stable")
        self._starts = np.unique(superclass_of[self._order], return_index=True)[1]
        self._scores = SingleLabelMetrics(len(self._starts), examples)

    def add(self, logits: Float32[np.ndarray, "b classes"], labels: Int32[np.ndarray, "b k"],
            mask: Bool[np.ndarray, " b"]) -> None:
        """Add one batch of softmax logits. Raises: UserError, as ``SingleLabelMetrics.add``."""
        logits, labels = _unmasked(logits, labels, mask, len(self._order), len(mask))
        # The logarithm of a sum of probabilities, but for the same constant for all: it tells small ones apart.
        scores = np.logaddexp.reduceat(logits[:, self._order], self._starts, axis=1)
        self._scores.add(scores, np.where(labels >= 0, self._superclass_of[labels], labels), np.ones(len(scores), bool))

    def result(self) -> dict[str, float | None]:
        """``{"superclass_top1": ..., "superclass_top5": ...}``, see `SingleLabelMetrics.result`."""
        return {f"superclass_{name}": value for name, value in self._scores.result().items()}


class _Store:
    """A float32 matrix ``[examples, classes]``, in memory or in a file, written by rows and read by blocks of columns.

    Rows are collected in tiles ``[classes, rows of the tile]``. Full tiles are written at once, and a range of classes
    is contiguous within each tile.
    """

    def __init__(self, classes: int, examples: int):
        self.count = 0
        self._bytes = 4 * classes * examples
        self._tile = np.empty((classes, min(examples, max(1, _TILE_BYTES // (4 * classes)))), np.float32)
        self._file = io.BytesIO()
        if self._bytes > MEMORY_BUDGET:
            self._folder = tempfile.gettempdir()
            try:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
                free = shutil.disk_usage(self._folder).free
            except OSError as error:
                raise UserError(f"cannot keep scores in {self._folder!r}: {error.strerror}") from error
            weakref.finalize(self, self._file.close)
            if free < self._bytes:
                raise self._full(free)

    def _full(self, free: int) -> UserError:
        return UserError(f"the scores need {self._bytes:,} bytes in {self._folder!r}, where {free:,} are free; name "
                         "another folder in the environment variable TMPDIR")

    def append(self, rows: Float32[np.ndarray, "b classes"]) -> None:
        tile_rows = self._tile.shape[1]
        while len(rows):
            used = self.count % tile_rows
            part = rows[: tile_rows - used]
            self._tile[:, used : used + len(part)] = part.T
            if used + len(part) == tile_rows:
                self._write(self.count // tile_rows)
            self.count += len(part)
            rows = rows[len(part) :]

    def _write(self, tile: int) -> None:
        self._file.seek(tile * self._tile.nbytes)
        left = memoryview(self._tile).cast("B")
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._full(shutil.disk_usage(self._folder).free) from error

    def blocks(self) -> Iterator[tuple[int, Float32[np.ndarray, "block count"]]]:
        """First class and scores of each block."""
        classes, tile_rows = self._tile.shape
        size = max(1, _TILE_BYTES // (4 * max(1, self.count)))
        for low in range(0, classes, size):
            high = min(low + size, classes)
            block = np.empty((high - low, self.count), np.float32)
            for tile, start in enumerate(range(0, self.count, tile_rows)):
                part = block[:, start : start + tile_rows]
                part[:] = self._read(tile, low, high)[:, : part.shape[1]]
            yield low, block

    def _read(self, tile: int, low: int, high: int) -> Float32[np.ndarray, "block rows"]:
        classes, tile_rows = self._tile.shape
        if tile == self.count // tile_rows:
            return self._tile[low:high]
        piece = np.empty((high - low, tile_rows), np.float32)
        self._file.seek((tile * classes + low) * tile_rows * 4)
        self._file.readinto(memoryview(piece).cast("B"))
        return piece


def _at_least(values: Num[np.ndarray, " n"], thresholds: Num[np.ndarray, " p"]) -> Int[np.ndarray, " p"]:
    """The number of values that reach each threshold."""
    if len(thresholds) <= _FEW:
        return np.array([np.count_nonzero(values >= t) for t in thresholds], np.int64)
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")


def _average_precisions(scores: Num[np.ndarray, " n"], positives: Num[np.ndarray, "q p"]) -> Float64[np.ndarray, " q"]:
    """Average precision if the scores of the positives are ``positives[0]``, ``positives[1]``, ..."""
    counts = _at_least(scores, positives.ravel()).reshape(positives.shape)
    true_counts = np.stack([_at_least(row, row) for row in positives])
    return (true_counts / counts).mean(axis=1)


def _check_sizes(classes: int, examples: int) -> None:
    if classes < 1 or examples < 1:
        raise UserError(f"classes={classes}, examples={examples}: expected at least 1 of each")


def _unmasked(scores: np.ndarray, labels: np.ndarray, mask: np.ndarray, classes: int, room: int
              ) -> tuple[Float32[np.ndarray, "rows classes"], Int32[np.ndarray, "rows k"]]:
    """The unmasked rows of a batch. Raises: UserError."""
    dtypes = (scores.dtype, labels.dtype, mask.dtype)
    if dtypes != (np.float32, np.int32, np.bool_):
        raise UserError(f"scores, labels, mask are {', '.join(map(str, dtypes))}: expected float32, int32, bool")
    if scores.shape != (len(mask), classes) or labels.ndim != 2 or len(labels) != len(mask):
        raise UserError(f"scores {scores.shape}, labels {labels.shape}, mask {mask.shape}: expected [b, {classes}], "
                        "[b, k], [b] with one b")
    if not mask.all():
        scores, labels = scores[mask], labels[mask]
    if len(scores) > room:
        raise UserError(f"{len(scores) - room} images more than the `examples` that were announced")
    if len(scores) and np.isnan(scores.min()):
        column = np.flatnonzero(np.isnan(scores).any(axis=0))[0]
        raise UserError(f"a score of class {column} is NaN; has training diverged?")
    wrong = labels[(labels < -1) | (labels >= classes)]
    if len(wrong):
        raise UserError(f"label {wrong[0]} is out of range: expected 0 to {classes - 1}, or -1 for padding")
    return scores, labels
