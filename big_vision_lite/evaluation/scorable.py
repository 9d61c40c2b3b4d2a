"""Whether there is anything to score in the data of an evaluation: asked before a run, not after hours."""

from __future__ import annotations

from collections.abc import Callable

from big_vision_lite.data.source import Dataset
from big_vision_lite.errors import BadImageError, UserError


def check_scorable(dataset: Dataset, counts: Callable[[int], bool], expected: str) -> None:
    """Look at a dataset's examples up to the first that counts: mostly just one.

    Args:
      counts: whether the example of an index counts in the task's metrics.
      expected: what such an example has.

    Raises:
      UserError: none counts; or an image cannot be read, and none of the others counts.
    """
    unreadable = None
    for index in range(len(dataset)):
        try:
            if counts(index):
                return
        except BadImageError as error:
            unreadable = unreadable or error
    raise unreadable or UserError(f"none of its {len(dataset):,} images has {expected}, so that nothing can be scored; "
                                  "choose other data, or leave this evaluation out")


def check_labels(dataset: Dataset) -> None:
    """Raises: UserError as `check_scorable`, when no image has a label."""
    check_scorable(dataset, lambda index: len(dataset.labels(index)[1]) > 0, "a label")
