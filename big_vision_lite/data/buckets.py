"""Which shape the images of a step have, when there are several: a pure function of the seed and the step.

Every image belongs to one bucket, by its size, which is known without decoding. In training each bucket has its own
endless shuffled stream, and steps are dealt out among the buckets by their shares of the images: of n images, any n
steps from a multiple of n on have exactly as many steps of a bucket as it has images. Within them the steps of a bucket
are spread evenly, each at a random place within its own stretch. In evaluation one bucket follows the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """Attributes:
    members: of each bucket, int64 ``[k]``, the indices of its images in ascending order.
    bucket: int8 ``[period]``: of each step its bucket; in training the steps repeat with this period.
    batch: int64 ``[period]``: which of the bucket's batches it is, counted from 0.
    """

    members: tuple[np.ndarray, ...]
    bucket: np.ndarray
    batch: np.ndarray

    @classmethod
    def of(cls, which: np.ndarray, count: int, batch_size: int, seed: int | None) -> Buckets:
        """Args:
        which: int64 ``[n]``, the bucket of each image, below ``count``.
        seed: of the order of steps; None for evaluation.

        In training, a bucket of fewer images than a batch would show each of them several times at once; its images
        go to the bucket that has most.
        """
        if seed is not None:
            sizes = np.bincount(which, minlength=count)
            which = np.where(sizes[which] < batch_size, sizes.argmax(), which)
        members = tuple(np.flatnonzero(which == b) for b in range(count))
        if seed is None:
            batches = [-(-len(m) // batch_size) for m in members]
            bucket = np.repeat(np.arange(count, dtype=np.int8), batches)
            return cls(members, bucket, np.concatenate([np.arange(k) for k in batches]))
        rng = np.random.Generator(np.random.Philox(key=(seed, 1)))
        times = np.concatenate([(np.arange(len(m)) + rng.random(len(m))) / max(len(m), 1) for m in members])
        order = np.argsort(times, kind="stable")
        bucket = np.repeat(np.arange(count, dtype=np.int8), [len(m) for m in members])[order]
        return cls(members, bucket, np.concatenate([np.arange(len(m)) for m in members])[order])

    def at(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and which batch of that bucket it is."""
        period, place = divmod(step, len(self.bucket))
        bucket = int(self.bucket[place])
        return bucket, period * len(self.members[bucket]) + int(self.batch[place])


def seed_of(seed: int, bucket: int) -> int:
    """Of the shuffled stream of a bucket."""
    return int(np.random.SeedSequence((seed, bucket)).generate_state(1)[0])


def of_batch(members: np.ndarray, positions: Sequence[int]) -> list[int]:
    """The images at these positions of a bucket in evaluation; -1 past its end."""
    return [int(members[p]) if p < len(members) else -1 for p in positions]
