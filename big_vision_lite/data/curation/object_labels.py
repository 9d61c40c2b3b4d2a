"""The objects of an example when classes are renumbered: boxes, arrays about them, and masks."""

from __future__ import annotations

import numpy as np

from big_vision_lite.data.masks import VOID, check_mask_values, mask_values
from big_vision_lite.data.source import OBJECT_ARRAYS, Example
from big_vision_lite.errors import BadImageError


def renumber_objects(example: Example, table: np.ndarray) -> Example:
    """The objects of an example with their new class numbers, without those that lose their class.

    Pixels of removed classes become background in a class mask; void stays void. With more than 254 classes a mask has
    no void: 255 is the 255th class.

    Args:
      table: int32 ``[classes]``: the new number of each class, -1 for none.

    Raises:
      BadImageError: a mask is damaged, or holds unknown classes.
    """
    objects: Example = {}
    if "box_labels" in example:
        labels = table[example["box_labels"]]
        remaining = np.flatnonzero(labels >= 0)
        objects = {name: example[name][remaining] for name in ("boxes", *OBJECT_ARRAYS) if name in example}
        objects["box_labels"] = labels[remaining]
        if "instance_mask" in example:
            number = np.zeros(len(labels) + 1, np.uint8)
            number[remaining + 1] = np.arange(1, len(remaining) + 1)
            objects["instance_mask"] = _replaced(example, "instance_mask", number)
    if "class_mask" in example:
        has_void = len(table) < VOID
        dtype = np.uint8 if table.max(initial=-1) + 1 < VOID else np.uint16
        value = np.zeros(VOID + 1 if has_void else len(table) + 1, dtype)
        value[1 : len(table) + 1] = table + 1
        if has_void:
            value[VOID] = VOID
        objects["class_mask"] = _replaced(example, "class_mask", value, len(table) if has_void else None)
    return objects


def _replaced(example: Example, name: str, values: np.ndarray, classes: int | None = None) -> np.ndarray:
    """A mask with each value v replaced by ``values[v]``. Raises: BadImageError."""
    mask, id_ = mask_values(example, name), example["id"]
    if classes is not None:
        check_mask_values(id_, mask, classes)
    if mask.size and mask.max() >= len(values):
        raise BadImageError(id_, f"its {name} has the value {mask.max()}; expected at most {len(values) - 1}")
    return values[mask]
