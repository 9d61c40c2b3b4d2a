"""Class masks: decoding, and checks of their size and values."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from big_vision_lite.data.decode import DecodeError, decode_errors, read_header
from big_vision_lite.data.source import Example
from big_vision_lite.errors import BadImageError, UserError

VOID = 255
"""In a class mask: undecided, or outside the image; counts for nothing."""

_MODES = ("P", "L", "1", "I;16", "I;16B")


def class_mask(example: Example, size: tuple[int, int]) -> np.ndarray:
    """uint8 ``[height, width]``, the ``class_mask`` of an example whose image has this size.

    Raises:
      BadImageError: it has another size, holds colours instead of classes, is damaged, or has values above 255.
    """
    mask, id_ = mask_values(example, "class_mask"), example["id"]
    if mask.ndim != 2:
        raise BadImageError(id_, f"its mask has shape {list(mask.shape)}; expected [height, width] of class numbers")
    check_mask_size(id_, mask, size)
    if mask.dtype != np.uint8:
        if mask.size and not 0 <= mask.min() <= mask.max() <= 255:
            raise BadImageError(id_, f"its mask has the value {mask.max()}; expected 0 to 255, for at most 254 classes")
        mask = mask.astype(np.uint8)
    return mask


def mask_values(example: Example, name: str) -> np.ndarray:
    """A mask of an example, decoded if it is a PNG, without an axis for its only channel. Raises: BadImageError."""
    mask = example[name]
    mask = decode_mask(mask, example["id"]) if isinstance(mask, bytes) else mask
    return mask[:, :, 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask


def check_mask_size(id_: str, mask: np.ndarray, size: tuple[int, int]) -> None:
    """Raises: BadImageError when a mask ``[h, w]`` does not have its image's ``size`` = (height, width)."""
    if mask.shape != tuple(size):
        raise BadImageError(id_, f"its mask has {mask.shape[1]} x {mask.shape[0]} pixels and the image {size[1]} x "
                            f"{size[0]}; expected the same size")


def check_mask_values(id_: str, mask: np.ndarray, classes: int) -> None:
    """Raises: BadImageError when a mask holds an unknown class; UserError when there are more than 254 classes."""
    if classes >= VOID:
        raise UserError(f"the data has {classes:,} classes, but a class mask can hold at most {VOID - 1}; choose fewer "
                        "with curate=(ClassSubset(...),), or set masks=False in the transform if they are not needed")
    if unknown := np.unique(mask[(mask > classes) & (mask != VOID)]).tolist():
        raise BadImageError(id_, f"its mask has the values {', '.join(map(str, unknown[:10]))}; expected 0 "
                            f"(background), 1 to {classes} (the classes) and {VOID} (void)")


def decode_mask(data: bytes, id_: str) -> np.ndarray:
    """A PNG of class numbers: uint8 or uint16 ``[height, width]``; for a palette PNG its indices, not its colours.

    Raises:
      BadImageError: it cannot be decoded, or it holds colours.
    """
    try:
        read_header(data)  # also compares checksums, which Pillow does not for pixels
        with decode_errors(), Image.open(io.BytesIO(data)) as image:
            mode, values = image.mode, np.asarray(image) if image.mode in _MODES else None
    except DecodeError as error:
        raise BadImageError(id_, f"its mask cannot be decoded ({error})") from error
    if values is None:
        raise BadImageError(id_, f"its mask is a colour image ({mode}), not class numbers; expected a PNG with a "
                            "palette, like VOC's, or grey values: replace each colour by its class")
    if values.dtype == np.uint8:
        return values
    return values.astype(np.uint8 if values.dtype == np.bool_ else np.uint16)
