"""The keypoints in a file in COCO's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from big_vision_lite.data.keypoints import labelled, mirror_of
from big_vision_lite.data.sources.box_records import PixelPosition
from big_vision_lite.errors import UserError, first_line

_KEYPOINTS = msgspec.json.Decoder(list[PixelPosition] | None)

PIXEL_CENTRE = 0.5
"""Where the centre of COCO's pixel 0 is in coordinates that count edges of pixels."""


def read_keypoints(path: str, categories: Sequence[Any], annotations: Sequence[Any],
                   sizes: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The keypoints of all annotations, as in an `Example`, and the keypoint that takes each one's place in a mirrored
    image.

    Args:
      path: of the file, for messages.
      categories: those of the file; each may have ``keypoints``, their names.
      annotations: the objects; each may have ``keypoints``, JSON of x, y and visibility in turn.
      sizes: int32 ``[n, 2]``: (height, width) of each object's image as annotated.

    Returns:
      float32 ``[n, k, 3]``; zeros for what is not labelled, and for objects without keypoints.

    Raises:
      UserError: there are annotations, but no category names keypoints, or two of them name different ones; an object
        has another number of keypoints, or a visibility other than 0, 1 or 2; or all keypoints lie outside of their
        images.
    """
    of_category = {category.name: tuple(category.keypoints) for category in categories if category.keypoints}
    if not annotations:
        return np.zeros((0, len(next(iter(of_category.values()), ())), 3), np.float32), ()
    if not of_category:
        raise UserError(f"{path} names no keypoints in its categories; expected a file such as COCO's "
                        "person_keypoints_train2017.json, or CocoJson.keypoints=False")
    names = next(iter(of_category.values()))
    for category, others in of_category.items():
        if others != names:
            raise UserError(f"{path}: category {category!r} has the keypoints {', '.join(others)}, and another "
                            f"{', '.join(names)}; expected the same in all: split the file by category")
    keypoints = np.zeros((len(annotations), len(names), 3), np.float64)
    for row, annotation in zip(keypoints, annotations, strict=True):
        try:
            values = _KEYPOINTS.decode(annotation.keypoints)
        except msgspec.DecodeError as error:
            raise UserError(f"{path}: keypoints of annotation {annotation.id}: {first_line(error)}; expected a list of "
                            "x, y and visibility in turn") from error
        if values is None:
            continue
        if len(values) != row.size:
            raise UserError(f"{path}: annotation {annotation.id} has {len(values)} numbers for keypoints; expected "
                            f"{row.size}: x, y and visibility of {len(names)} keypoints")
        row[:] = np.reshape(values, row.shape)
        if not np.isin(row[:, 2], (0, 1, 2)).all():
            wrong = next(value for value in row[:, 2].tolist() if value not in (0, 1, 2))
            raise UserError(f"{path}: a keypoint of annotation {annotation.id} has visibility {wrong:g}; expected 0 "
                            "(not labelled), 1 (labelled but occluded) or 2 (visible)")
    with_position = labelled(keypoints)
    sides = sizes[:, None, ::-1]
    keypoints[..., :2] = np.where(with_position[..., None], (keypoints[..., :2] + PIXEL_CENTRE) / sides, 0.0)
    outside = ((keypoints[..., :2] < 0) | (keypoints[..., :2] > 1)).any(-1)
    if with_position.any() and outside[with_position].all():
        image, k = np.argwhere(with_position)[0]
        x, y = keypoints[image, k, :2] * sides[image, 0] - PIXEL_CENTRE
        raise UserError(f"{path}: all {with_position.sum():,} labelled keypoints lie outside of their images; the "
                        f"first is at x {x:g}, y {y:g} in an image of {sides[image, 0, 0]} x {sides[image, 0, 1]}; "
                        "expected pixels from the upper left corner")
    return keypoints.astype(np.float32), mirror_of(names)
