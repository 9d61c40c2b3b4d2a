"""From a source to batches. A batch is a pure function of the global step, so the step is the only data state.

Training: the stream is the dataset's indices, reshuffled every epoch. Global batch k is positions kB to (k+1)B-1 of the
stream, and process p of P makes rows pB/P to (p+1)B/P-1 of it, so any number of processes sees the same batches.
Evaluation: indices in order, each exactly once; the last batch is padded with masked slots.
Of a dataset with strata, each stratum has its own stream and its share of the positions: see `data.mixing`.
With a transform of several shapes, each batch has one of them, and each shape its own stream: see `data.buckets`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from big_vision_lite.data.buckets import Buckets, bucket_seed
from big_vision_lite.data.curation.steps import Curation, curated
from big_vision_lite.data.masks import check_mask_values
from big_vision_lite.data.mixing import MixedStream
from big_vision_lite.data.shuffle import ShuffledStream
from big_vision_lite.data.source import Dataset, Example, Source
from big_vision_lite.data.transforms.image import ExactAugmentation, ImageTransform, Transform
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.system.fields import check

Targets = Callable[[Example], dict[str, np.ndarray]]
"""From a transformed example to a head's targets: arrays of fixed shapes."""


@dataclasses.dataclass(frozen=True)
class Input:
    """What is read, how images are transformed, and how they are batched."""

    source: Source
    transform: Transform
    batch_size: int = 256
    """Images per step over all processes."""
    on_bad_image: Literal["raise", "mask"] = "raise"
    """When an image cannot be decoded: stop and name it, or mask its slot and count it, so that the order and number
    of batches never depend on which files are bad."""
    threads: int | None = None
    """Threads, each making a batch; None: one per core, at most 16."""
    workers: int = 0
    """Worker processes that make batches, each with ``threads`` threads; 0: none, this process makes them."""
    prefetch: int = 4
    """Batches made ahead."""
    curate: tuple[Curation, ...] = ()
    """Steps of `data.curation`, in order: which examples are used, with which labels."""
    resident: Literal["host", "device"] | None = None
    """Where images are kept, decoded once; None: they are read and decoded each time. Batches stay the same to the bit.
    ``host``: in memory, for transforms that decode the same pixels of an image each time: `RandomCropPadded`, `Resize`,
    `CentreCrop`. ``device``: on every device too, where training steps take and augment them (`data.resident`);
    evaluations are sent from the host as ever."""

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size < 1 or self.workers < 0 or self.prefetch < 1 or (self.threads or 1) < 1:
            raise UserError(f"Input: batch_size={self.batch_size}, threads={self.threads}, workers={self.workers}, "
                            f"prefetch={self.prefetch}; expected workers of at least 0 and the others at least 1")
        if self.resident is not None:
            self._check_resident()

    def _check_resident(self) -> None:
        transform, what = self.transform, f"Input: resident={self.resident!r}"
        if not isinstance(transform, ImageTransform) or transform.kept is None:
            raise UserError(f"{what} with {type(transform).__name__}, whose pixels cannot be kept; expected "
                            "RandomCropPadded, Resize or CentreCrop, or resident=none")
        inexact = [type(change).__name__ for change in transform.augment if not isinstance(change, ExactAugmentation)]
        if inexact and transform.random:
            raise UserError(f"{what} with augment={inexact[0]}, which changes one image at a time; expected Cutout, or "
                            "resident=none")
        if self.workers:
            raise UserError(f"{what} with workers={self.workers}; images are kept in one process: set workers=0")

    @property
    def thread_count(self) -> int:
        return self.threads or min(16, usable_cores())

    def open(self) -> Dataset:
        """The curated dataset. Raises: UserError as `Source.open` and `curated`."""
        return curated(self.source.open(), self.curate)


class BatchMaker:
    """Makes this process's rows of global batch ``step``.

    A batch is a dict of ``image`` uint8 ``[b, h, w, 3]``, ``mask`` bool ``[b]`` (False: padding or a bad image),
    ``index`` int64 ``[b]`` (into the dataset, -1 for padding) and the stacked targets.

    Args:
      seed: for the order and for every random choice. None: evaluation, every example once.
      process, processes: which rows of the global batch to make.

    Raises:
      UserError: the batch size is not divisible by the number of processes.
    """

    def __init__(self, dataset: Dataset, inputs: Input, targets: Targets, seed: int | None, process: int = 0,
                 processes: int = 1):
        if inputs.batch_size % processes:
            raise UserError(f"batch_size={inputs.batch_size} does not divide over {processes} processes")
        self.dataset, self.inputs, self.targets, self.seed = dataset, inputs, targets, seed
        self.rows = inputs.batch_size // processes
        self.first_row = process * self.rows
        self._orders = {}  # the shuffled stream of each bucket
        shapes, self._buckets = inputs.transform.shapes, None
        self._strata = None if seed is None else dataset.strata()
        weights, self._frequencies = None, np.zeros(0)
        if self._strata:
            sizes = np.bincount(self._strata.of, minlength=len(self._strata.weights))
            if not sizes.all():
                raise UserError(f"no example is left of source {int(sizes.argmin())} of the mixture; loosen the "
                                "curation, or leave the source out")
            self._frequencies = np.array(self._strata.weights) / sizes  # of each image of a stratum
            weights = self._frequencies[self._strata.of] if len(shapes) > 1 else None
        if len(shapes) > 1:
            which = inputs.transform.bucket(dataset.image_sizes())
            self._buckets = Buckets.of(which, len(shapes), inputs.batch_size, seed, weights)

    def __len__(self) -> int:
        """Batches in one pass over the dataset."""
        if self._buckets and self.seed is None:
            return len(self._buckets.bucket)
        return -(-len(self.dataset) // self.inputs.batch_size)

    def _indices(self, bucket: int, positions: range) -> np.ndarray:
        """The dataset's indices at positions of a bucket's stream, int64 ``[k]``; -1 past the end of an evaluation."""
        members = self._buckets.members[bucket] if self._buckets else None
        length = len(self.dataset) if members is None else len(members)
        if self.seed is None:
            indices = np.asarray(positions, np.int64)
        else:
            if bucket not in self._orders:
                seed = self.seed if members is None else bucket_seed(self.seed, bucket)
                self._orders[bucket] = self._order(length, seed, members)
            indices = self._orders[bucket](positions)
        inside = indices < length
        return np.where(inside, indices if members is None else members[np.where(inside, indices, 0)], -1)

    def _order(self, length: int, seed: int, members: np.ndarray | None) -> ShuffledStream | MixedStream:
        """The stream of all examples, or of a bucket's ``members``."""
        if self._strata is None:
            return ShuffledStream(length, seed)
        of = self._strata.of if members is None else self._strata.of[members]
        return MixedStream(of, (np.bincount(of, minlength=len(self._frequencies)) * self._frequencies).tolist(), seed)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_orders": {}}  # cheap to rebuild in a worker process

    def __call__(self, step: int) -> dict[str, Any]:
        """Raises: BadImageError, unless bad images are masked."""
        indices, positions, shape = self.slots(step)
        return self.gather(indices.tolist(), positions, shape)

    def slots(self, step: int) -> tuple[np.ndarray, range, tuple[int, int, int]]:
        """The indices, positions and shape of a batch, see `gather`."""
        bucket, batch = self._buckets.at(int(step)) if self._buckets else (0, int(step))
        first, keys = (k * self.inputs.batch_size + self.first_row for k in (batch, int(step)))
        indices = self._indices(bucket, range(first, first + self.rows))
        return indices, range(keys, keys + self.rows), self.inputs.transform.shapes[bucket]

    def gather(self, indices: Sequence[int], positions: Sequence[int],
               shape: tuple[int, int, int] | None = None) -> dict[str, Any]:
        """A batch of the examples at ``indices`` (-1: an empty slot), whose random choices are keyed by ``positions``.
        ``shape`` is one of the transform's shapes; None for the largest."""
        images = np.zeros((len(indices), *(shape or self.inputs.transform.shape)), np.uint8)
        mask = np.zeros(len(indices), np.bool_)
        targets = []
        bits = np.random.Philox(key=(self.seed or 0, 0))  # re-keyed for each position, faster than a new one
        rng, state = np.random.Generator(bits), bits.state
        read = iter(self.dataset.read([index for index in indices if index >= 0]))
        for row, (index, position) in enumerate(zip(indices, positions, strict=True)):
            if index >= 0:
                state["state"]["key"][1] = position
                bits.state = state
                try:
                    if isinstance(stored := next(read), BadImageError):
                        raise stored
                    transformed = self.inputs.transform(stored, rng, images[row])
                    if "class_mask" in transformed:
                        check_mask_values(stored["id"], transformed["class_mask"], len(self.dataset.classes))
                    targets.append(self.targets(transformed))
                    mask[row] = True
                    continue
                except BadImageError:
                    if self.inputs.on_bad_image == "raise":
                        raise
                    images[row] = 0
            targets.append(self.targets(empty_slot()))
        stacked = {key: np.stack([t[key] for t in targets]) for key in targets[0]}
        return {"image": images, "mask": mask, "index": np.asarray(indices, np.int64), **stacked}


def empty_slot() -> Example:
    """What targets are made of where there is no image."""
    return {"id": "", "labels": np.zeros(0, np.int32)}


def batches(make: BatchMaker, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Batches ``start`` to ``stop - 1`` in order, prefetched by threads or worker processes."""
    import grain

    inputs = make.inputs
    threads = inputs.thread_count
    ahead = max(inputs.prefetch, threads)
    data = grain.MapDataset.range(start, stop).map(make).to_iter_dataset(
        grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead))
    if inputs.workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain passes its flags to workers; absl refuses to read unparsed ones
            flags.FLAGS.mark_as_parsed()
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=inputs.workers,
                                                             per_worker_buffer_size=inputs.prefetch))
    return iter(data)
