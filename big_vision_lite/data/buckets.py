"""Batches of several image shapes: which bucket each step uses, as a pure function of seed and step.

Every image belongs to one bucket, by its size. In training, each bucket has its own endless shuffled stream, and steps
are assigned to buckets in proportion to their images: with n images, each period of n steps has as many steps of a
bucket as the bucket has images; or, if images have weights, as many as its share of their sum. Within the period, a
bucket's steps are spread evenly with random jitter. In evaluation, the buckets follow one another.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """Attributes:
    members: per bucket, int64 ``[k]``: the indices of its images, ascending.
    bucket: int8 ``[period]``: the bucket of each step; in training, steps repeat with this period.
    batch: int64 ``[period]``: which of the bucket's batches the step uses, counted from 0.
    steps: per bucket, its steps in a period.
    """

    members: tuple[np.ndarray, ...]
    bucket: np.ndarray
    batch: np.ndarray
    steps: tuple[int, ...]

    @classmethod
    def of(cls, which: np.ndarray, count: int, batch_size: int, seed: int | None, weights: np.ndarray | None = None
           ) -> Buckets:
        """Args:
        which: int64 ``[n]``, the bucket of each image, below ``count``.
        seed: for the order of steps; None for evaluation.
        weights: float64 ``[n]``: how often each image is seen, relative to the others; None: all equally often.

        In training, a bucket with fewer images than a batch would repeat images within a batch, so its images go to
        the largest bucket.
        """
        if seed is not None:
            sizes = np.bincount(which, minlength=count)
            which = np.where(sizes[which] < batch_size, sizes.argmax(), which)
        members = tuple(np.flatnonzero(which == b) for b in range(count))
        if seed is None:
            batches = [-(-len(m) // batch_size) for m in members]
            bucket = np.repeat(np.arange(count, dtype=np.int8), batches)
            return cls(members, bucket, np.concatenate([np.arange(k) for k in batches]), tuple(batches))
        steps = tuple(len(m) for m in members)
        if weights is not None:
            shares = np.bincount(which, weights, count) / weights.sum()
            steps = tuple(max(round(share * len(which)), int(share > 0)) for share in shares)
        rng = np.random.Generator(np.random.Philox(key=(seed, 1)))
        times = np.concatenate([(np.arange(k) + rng.random(k)) / max(k, 1) for k in steps])
        order = np.argsort(times, kind="stable")
        bucket = np.repeat(np.arange(count, dtype=np.int8), steps)[order]
        return cls(members, bucket, np.concatenate([np.arange(k) for k in steps])[order], steps)

    def at(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and which of that bucket's batches it uses."""
        period, offset = divmod(step, len(self.bucket))
        bucket = int(self.bucket[offset])
        return bucket, period * self.steps[bucket] + int(self.batch[offset])


def bucket_seed(seed: int, bucket: int) -> int:
    """The seed of a bucket's shuffled stream."""
    return int(np.random.SeedSequence((seed, bucket)).generate_state(1)[0])


