"""What of an example speaks of objects, in another numbering of the classes."""

from __future__ import annotations

import numpy as np

from big_vision_lite.data.joint_transforms import VOID, check_mask_values, decode_mask
from big_vision_lite.data.source import OBJECTS, Example
from big_vision_lite.errors import BadImageError

MASKS = ("instance_mask", "class_mask")


def relabelled(example: Example, table: np.ndarray) -> Example:
    """The objects of an example whose classes are renumbered; those that lose their class are gone.

    Where a class is gone, a class mask has background; void stays void. Of more than 254 classes a mask has no void:
    255 is the value of the 255th.

    Args:
      table: int32 ``[classes]``: the new number of each class, -1 for none.

    Raises:
      BadImageError: a mask is damaged, or has values that are no class.
    """
    found: Example = {}
    if "box_labels" in example:
        labels = table[example["box_labels"]]
        kept = np.flatnonzero(labels >= 0)
        found = {name: example[name][kept] for name in OBJECTS if name in example and name not in MASKS}
        found["box_labels"] = labels[kept]
        if "instance_mask" in example:
            number = np.zeros(len(labels) + 1, np.uint8)
            number[kept + 1] = np.arange(1, len(kept) + 1)
            found["instance_mask"] = _looked_up(example, "instance_mask", number)
    if "class_mask" in example:
        few = len(table) < VOID
        dtype = np.uint8 if table.max(initial=-1) + 1 < VOID else np.uint16
        value = np.zeros(VOID + 1 if few else len(table) + 1, dtype)
        value[1 : len(table) + 1] = table + 1
        if few:
            value[VOID] = VOID
        found["class_mask"] = _looked_up(example, "class_mask", value, len(table) if few else None)
    return found


def _looked_up(example: Example, name: str, values: np.ndarray, classes: int | None = None) -> np.ndarray:
    """A mask with each value replaced. Raises: BadImageError."""
    mask, id_ = example[name], example["id"]
    mask = decode_mask(mask, id_) if isinstance(mask, bytes) else mask
    if classes is not None:
        check_mask_values(id_, mask, classes)
    if mask.size and mask.max() >= len(values):
        raise BadImageError(id_, f"its {name} has the value {mask.max()}; expected at most {len(values) - 1}")
    return values[mask]
