"""From a source to batches. A batch is a pure function of the global step, so the step is the only data state.

Training: the stream is the source's indices, shuffled anew each epoch. Global batch k is positions kB to (k+1)B-1 of
the stream, and process p of P makes rows pB/P to (p+1)B/P-1 of it. Any number of processes sees the same batches.
Evaluation: indices in order, each exactly once; the last batch is filled up with masked slots.
A transform of several shapes gives each batch one of them, and each shape a stream of its own: see `data.buckets`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from big_vision_lite.data.buckets import Buckets, of_batch, seed_of
from big_vision_lite.data.cores import usable_cores
from big_vision_lite.data.curation import Curation, curated
from big_vision_lite.data.joint_transforms import check_mask_values
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.data.transforms import Transform
from big_vision_lite.errors import BadImageError, UserError

Targets = Callable[[Example], dict[str, np.ndarray]]
"""What a head makes of a transformed example: arrays of fixed shapes."""


@dataclasses.dataclass(frozen=True)
class Input:
    """What is read, how each image is transformed, and in batches of how many."""

    source: Source
    transform: Transform
    batch_size: int = 256
    """Images a step over all processes."""
    on_bad_image: Literal["raise", "mask"] = "raise"
    """An image that cannot be decoded: stop and name it, or keep its slot with weight 0 and count it, so that
    order and number of batches never depend on which files are bad."""
    threads: int | None = None
    """Batches that are made at the same time, a thread each; None: one a core, at most 16."""
    workers: int = 0
    """Worker processes that make batches, each with ``threads`` threads; 0: this process does."""
    prefetch: int = 4
    """Batches kept ready."""
    curate: tuple[Curation, ...] = ()
    """Which examples of the source are used, and with which labels: steps of `data.curation`, in order."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or self.prefetch < 1 or (self.threads or 1) < 1:
            raise UserError(f"Input: batch_size={self.batch_size}, threads={self.threads}, workers={self.workers}, "
                            f"prefetch={self.prefetch}; expected workers of at least 0 and the others at least 1")

    def open(self) -> Records:
        """The source, curated. Raises: UserError as `Source.open` and `curated`."""
        return curated(self.source.open(), self.curate)


class BatchMaker:
    """Makes this process's rows of global batch ``step``.

    A batch is a dict of ``image`` uint8 ``[b, h, w, 3]``, ``mask`` bool ``[b]`` (False: padding or a bad image),
    ``index`` int64 ``[b]`` (of the example in the source, -1 for padding) and the targets, stacked.

    Args:
      process, processes: which rows of the global batch are ours.
      seed: of the order and of every random choice. None: evaluation, every example once.

    Raises:
      UserError: the batch does not divide over processes.
    """

    def __init__(self, records: Records, inputs: Input, targets: Targets, seed: int | None, process: int = 0,
                 processes: int = 1):
        if inputs.batch_size % processes:
            raise UserError(f"batch_size={inputs.batch_size} does not divide over {processes} processes")
        self.records, self.inputs, self.targets, self.seed = records, inputs, targets, seed
        self.rows = inputs.batch_size // processes
        self.first = process * self.rows
        self._order = self._orders = None
        shapes, self._buckets = inputs.transform.shapes, None
        if len(shapes) > 1:
            which = inputs.transform.bucket(records.image_sizes())
            self._buckets = Buckets.of(which, len(shapes), inputs.batch_size, seed)

    def __len__(self) -> int:
        """Batches in one pass over the source."""
        if self._buckets and self.seed is None:
            return len(self._buckets.bucket)
        return -(-len(self.records) // self.inputs.batch_size)

    def index(self, position: int) -> int:
        """The source's index at a position of the stream; -1 past the end of an evaluation."""
        if self.seed is None:
            return position if position < len(self.records) else -1
        if self._order is None:
            import grain

            self._order = grain.MapDataset.range(len(self.records)).seed(self.seed).shuffle().repeat()
        return int(self._order[position])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_order": None, "_orders": None}  # cheap to make anew in a worker process

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Raises: BadImageError, unless bad images are masked."""
        start = int(step) * self.inputs.batch_size + self.first
        positions = range(start, start + self.rows)
        if self._buckets:
            bucket, batch = self._buckets.at(int(step))
            first = batch * self.inputs.batch_size + self.first
            indices = self._of_bucket(bucket, range(first, first + self.rows))
            return self.gather(indices, positions, self.inputs.transform.shapes[bucket])
        return self.gather([self.index(p) for p in positions], positions)

    def _of_bucket(self, bucket: int, positions: Sequence[int]) -> list[int]:
        """The source's indices at positions of a bucket's stream; -1 past the end of an evaluation."""
        members = self._buckets.members
        if self.seed is None:
            return of_batch(members[bucket], positions)
        if self._orders is None:
            import grain

            self._orders = [grain.MapDataset.range(len(m)).seed(seed_of(self.seed, b)).shuffle().repeat()
                            if len(m) else None for b, m in enumerate(members)]
        return [int(members[bucket][self._orders[bucket][p]]) for p in positions]

    def gather(self, indices: Sequence[int], positions: Sequence[int],
               shape: tuple[int, int, int] | None = None) -> dict[str, np.ndarray]:
        """A batch of the examples ``indices`` (-1: an empty slot); ``positions`` key their random choices. ``shape`` is
        one of the transform's; None for the largest."""
        images = np.zeros((len(indices), *(shape or self.inputs.transform.shape)), np.uint8)
        mask = np.zeros(len(indices), np.bool_)
        targets = []
        random = np.random.Philox(key=(self.seed or 0, 0))  # moved to each position: a new one takes longer
        rng, state = np.random.Generator(random), random.state
        read = iter(self.records.read([index for index in indices if index >= 0]))
        for row, (index, position) in enumerate(zip(indices, positions, strict=True)):
            example: Example = {"id": "", "labels": np.zeros(0, np.int32)}
            if index >= 0:
                state["state"]["key"][1] = position
                random.state = state
                try:
                    if isinstance(found := next(read), BadImageError):
                        raise found
                    transformed = self.inputs.transform(found, rng, images[row])
                    if "class_mask" in transformed:
                        check_mask_values(found["id"], transformed["class_mask"], len(self.records.classes))
                    example, mask[row] = transformed, True
                except BadImageError:
                    if self.inputs.on_bad_image == "raise":
                        raise
                    images[row] = 0
            targets.append(self.targets(example))
        stacked = {key: np.stack([t[key] for t in targets]) for key in targets[0]}
        return {"image": images, "mask": mask, "index": np.asarray(indices, np.int64), **stacked}


def batches(make: BatchMaker, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches ``start`` to ``stop - 1`` in order, made ahead by threads or worker processes."""
    import grain

    inputs = make.inputs
    threads = inputs.threads or min(16, usable_cores())
    ahead = max(inputs.prefetch, threads)
    data = grain.MapDataset.range(start, stop).map(make).to_iter_dataset(
        grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead))
    if inputs.workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain tells its workers its flags; absl refuses to read unparsed ones
            flags.FLAGS.mark_as_parsed()
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=inputs.workers,
                                                             per_worker_buffer_size=inputs.prefetch))
    return iter(data)
