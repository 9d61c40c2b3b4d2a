"""Images that are decoded once and kept: the same batches as the pipeline's, without reading or decoding.

All random choices of a batch are drawn at once. The same function applies them to the kept images in NumPy and in JAX,
so that a batch can be made on the host (`ResidentBatchMaker`) or where the images lie (`ViewMaker`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from big_vision_lite.data.pipeline import BatchMaker, Input, Targets, empty_slot
from big_vision_lite.data.random_streams import Streams
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.data.transforms.image import ImageTransform
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.system.memory import free_memory

CHUNK = 256
"""Images that a thread decodes at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """The images of a dataset, decoded, and the rest of its examples. The last entry of each is an empty slot, so that
    index -1 finds it."""

    images: np.ndarray
    """uint8 ``[n + 1, h, w, 3]``; zeros where `valid` is False."""
    valid: np.ndarray
    """bool ``[n + 1]``: False for images that cannot be decoded, and for the empty slot."""
    examples: list[Example]


def keep(dataset: Dataset, inputs: Input, heartbeat: Callable[[], None] = lambda: None) -> Kept:
    """Decode all images; ``heartbeat`` is called now and then.

    Raises:
      UserError: they do not fit into memory.
      BadImageError: one cannot be decoded, and ``inputs`` does not mask those.
    """
    transform = _image_transform(inputs).kept
    assert transform is not None
    shape = (len(dataset) + 1, *transform.shape)
    check_space(math.prod(shape), free_memory(), len(dataset), "memory")
    kept = Kept(np.zeros(shape, np.uint8), np.zeros(len(dataset) + 1, np.bool_),
                [empty_slot() for _ in range(len(dataset) + 1)])
    rng = np.random.default_rng(0)  # makes no choices, only keys, which are not kept

    def decode(start: int) -> None:
        rows = range(start, min(start + CHUNK, len(dataset)))
        for row, example in zip(rows, dataset.read(rows), strict=True):
            try:
                if isinstance(example, BadImageError):
                    raise example
                transformed = transform(example, rng, kept.images[row])
                kept.examples[row] = {key: value for key, value in transformed.items() if key != "key"}
                kept.valid[row] = True
            except BadImageError:
                if inputs.on_bad_image == "raise":
                    raise
                kept.images[row] = 0

    with concurrent.futures.ThreadPoolExecutor(inputs.thread_count) as pool:
        for _ in pool.map(decode, range(0, len(dataset), CHUNK)):
            heartbeat()
    return kept


def check_space(needed: int, free: int | None, images: int, where: str) -> None:
    """Raises: UserError when images of ``needed`` bytes do not fit into ``free`` ones (None: unknown)."""
    if free is not None and needed > free:
        raise UserError(f"the {images:,} decoded images take {needed:,} bytes, and {free:,} are free in {where}; set "
                        "resident=none, or use smaller or fewer images")


def _image_transform(inputs: Input) -> ImageTransform:
    assert isinstance(inputs.transform, ImageTransform)  # Input has checked it
    return inputs.transform


class ResidentBatchMaker(BatchMaker):
    """A `BatchMaker` of kept images.

    Args:
      fixed_targets: an image's targets are always the same, except that one named "key" is the image's random key.
    """

    def __init__(self, kept: Kept, dataset: Dataset, inputs: Input, targets: Targets, seed: int | None,
                 process: int = 0, processes: int = 1, fixed_targets: bool = False):
        super().__init__(dataset, inputs, targets, seed, process, processes)
        self.kept, self._fixed = kept, None
        if fixed_targets:
            made = [targets(example | {"key": np.zeros(2, np.uint32)} if valid else example)
                    for example, valid in zip(kept.examples, kept.valid, strict=True)]
            self._fixed = _stacked(made)

    def views(self, rows: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
        """What `gather` makes of indices and positions, int64 ``[b]``, with "view" in place of "image": what `viewed`
        makes the images of."""
        transform, streams = _image_transform(self.inputs), Streams(self.seed or 0, positions)
        changes = transform.augment if transform.random else ()
        choices = (transform.choose(streams), *(change.choose(streams, *transform.shape[:2]) for change in changes))
        view = {"row": (rows % len(self.kept.valid)).astype(np.int32), "choices": choices}
        mask, keys = self.kept.valid[rows], streams.key()
        if self._fixed is None:
            examples = (self.kept.examples[row] for row in rows)
            targets = _stacked([self.targets(example | {"key": key} if valid else example)
                                for example, key, valid in zip(examples, keys, mask, strict=True)])
        else:
            targets = {name: values[rows] for name, values in self._fixed.items()}
            if "key" in targets:
                targets["key"] = np.where(mask[:, None], keys, targets["key"])
        return {"view": view, "mask": mask, "index": rows, **targets}

    def gather(self, indices: Sequence[int], positions: Sequence[int],
               shape: tuple[int, int, int] | None = None) -> dict[str, Any]:
        batch = self.views(np.asarray(indices, np.int64), np.asarray(positions, np.int64))
        view = batch.pop("view")
        return {"image": viewed(_image_transform(self.inputs), self.kept.images, view, batch["mask"], np), **batch}


class ViewMaker(ResidentBatchMaker):
    """Makes what `views` does of the batches of several steps, one after the other.

    Attributes:
      starts: number k makes batches ``starts[k]`` to ``starts[k + 1] - 1``.
    """

    starts: Sequence[int]

    def __call__(self, step: int) -> dict[str, Any]:
        first, stop = self.starts[int(step) : int(step) + 2]
        slots = [self.slots(step) for step in range(first, stop)]
        return self.views(*(np.concatenate([slot[i] for slot in slots]) for i in (0, 1)))


def viewed(transform: ImageTransform, images: Any, view: dict[str, Any], mask: Any, xp: Any) -> Any:
    """The images of a batch, uint8 ``[b, h, w, 3]``, from all kept ones; ``xp`` is numpy or jax.numpy."""
    choices, *more = view["choices"]
    batch = transform.change(xp.take(images, view["row"], axis=0), choices, xp)
    for change, choices in zip(transform.augment, more, strict=False):
        batch = change.change(batch, choices, xp)
    return xp.where(mask[:, None, None, None], batch, xp.zeros((), xp.uint8))


def _stacked(targets: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([each[name] for each in targets]) for name in targets[0]}
