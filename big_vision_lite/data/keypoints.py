"""Sets of keypoints: their names, limbs and spreads, and what becomes of them in a mirrored image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from big_vision_lite.errors import UserError

UNLABELLED, OCCLUDED, VISIBLE = 0, 1, 2
"""COCO's visibility of a keypoint. One that is not labelled has no position."""


@dataclasses.dataclass(frozen=True)
class KeypointSet:
    """The keypoints of one kind of object. Raises: UserError when the fields do not fit together."""

    names: tuple[str, ...]
    """In the order of the annotations. "left" and "right" in names mark keypoints that swap in a mirrored image."""
    sigmas: tuple[float, ...]
    """Of each keypoint, the spread of its annotations as a share of the object's size, the square root of its area:
    object keypoint similarity is ``exp(-d^2 / (2 area (2 sigma)^2))`` at a distance of d pixels (COCO)."""
    limbs: tuple[tuple[int, int], ...] = ()
    """Pairs of keypoints to connect in pictures, counted from 0."""

    def __post_init__(self) -> None:
        count = len(self.names)
        if not count or len(set(self.names)) < count:
            raise UserError(f"KeypointSet.names is {self.names}; expected at least one name and no duplicates")
        if len(self.sigmas) != count or min(self.sigmas) <= 0:
            raise UserError(f"KeypointSet.sigmas is {self.sigmas}; expected {count} numbers above 0, one per name")
        if any(len(limb) != 2 or not 0 <= min(limb) <= max(limb) < count for limb in self.limbs):
            raise UserError(f"KeypointSet.limbs is {self.limbs}; expected pairs of keypoints from 0 to {count - 1}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mirror(self) -> tuple[int, ...]:
        """For each keypoint the one that takes its place in a mirrored image."""
        return mirror_of(self.names)


def mirror_of(names: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint the one that takes its place in a mirrored image: that of the name with left and right swapped.

    >>> mirror_of(["nose", "left_eye", "right_eye"])
    (0, 2, 1)
    """
    swapped = [re.sub("left|right", lambda side: "right" if side[0] == "left" else "left", name) for name in names]
    return tuple(names.index(other) if other in names else i for i, other in enumerate(swapped))


def labelled(keypoints: np.ndarray) -> np.ndarray:
    """bool ``[..., k]``: which of the keypoints ``[..., k, 3]`` have a position."""
    return keypoints[..., 2] > UNLABELLED


COCO_PERSON = KeypointSet(
    names=("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
           "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
           "right_ankle"),
    sigmas=(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
            0.089, 0.089),
    limbs=((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
           (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
"""The 17 keypoints of persons in COCO, with its sigmas."""

EMOJI = KeypointSet(("top", "bottom", "left", "right"), (0.05,) * 4, ((0, 1), (2, 3)))
"""The outermost points of a drawing, as seen along its own axes; see `data.sources.emoji_scenes`."""
