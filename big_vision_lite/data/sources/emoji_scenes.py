"""Scenes of emoji: an endless labelled dataset that is a pure function of (seed, index).

A scene has one to five objects of 824 classes whose frequencies follow Zipf's law, at random positions, scales and
rotations, occluding one another, on a background that is independent of them. `EmojiScenes` composes on access, so
nothing needs to be prepared or stored, and the first n images of a larger set are the set of n images:

    dataset = EmojiScenes("train", images=1_000_000).open()
    dataset[123_456]  # an Example: JPEG, labels, boxes, masks
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg

from big_vision_lite.data.keypoints import EMOJI, OCCLUDED, UNLABELLED, VISIBLE
from big_vision_lite.data.source import Dataset, Example, Source
from big_vision_lite.data.sources.emoji_art import (
    art_version,
    background,
    drawing,
    emoji_classes,
    outermost_points,
)
from big_vision_lite.errors import UserError, nearest

VERSION = 1
"""Must be raised whenever any scene changes."""
SPLITS = {"train": 1_000_000, "validation": 5_000, "test": 10_000}
"""The splits and their default numbers of images."""
MIN_VISIBLE = 0.2
"""Objects with a smaller visible fraction are not labelled."""

_FREQUENCY_SEED = 20_240_229  # the ranking of classes by frequency is the same for every seed of a set


class EmojiVocabulary(NamedTuple):
    """The classes of a set, in the order of their ids."""

    names: tuple[str, ...]
    codes: tuple[tuple[str, ...], ...]
    """The drawings of each class, see `emoji_art.EmojiClass`."""
    cumulative: np.ndarray
    """float64 ``[classes]``: the probability that an object has this class or an earlier one."""


@functools.lru_cache(maxsize=64)
def vocabulary(classes: tuple[str, ...] | int | None = None, zipf: float = 1.0) -> EmojiVocabulary:
    """The named classes, with frequencies ``rank ** -zipf``, where rank is among all classes, from 1.

    Args:
      classes: names, kept in their order; k for the k most frequent, most frequent first; None for all.
      zipf: 0 for equally frequent classes.

    Raises:
      UserError: a name is unknown or repeated, or k is out of range.
    """
    all_classes = emoji_classes()
    by_rank = np.random.Generator(np.random.Philox(key=_FREQUENCY_SEED)).permutation(len(all_classes))
    ids = {c.name: i for i, c in enumerate(all_classes)}
    if classes is None:
        selected = list(range(len(all_classes)))
    elif isinstance(classes, int):
        if not 1 <= classes <= len(all_classes):
            raise UserError(f"classes={classes}: expected names, or a number up to {len(all_classes)}")
        selected = by_rank[:classes].tolist()
    else:
        for name in classes:
            if name not in ids:
                raise UserError(f"unknown emoji class {name!r}{nearest(str(name), ids)}")
        if not classes or len(set(classes)) < len(classes):
            raise UserError(f"classes={classes}: expected at least one name and no duplicates")
        selected = [ids[name] for name in classes]
    rank = np.argsort(by_rank)[selected] + 1.0
    weight = rank**-zipf
    cumulative = np.cumsum(weight / weight.sum())
    cumulative[-1] = 1
    return EmojiVocabulary(tuple(all_classes[i].name for i in selected), tuple(all_classes[i].codes for i in selected),
                           cumulative)


def compose(seed: int, index: int, *, size: int = 48, style: str = "twemoji", split: str = "train",
            classes: tuple[str, ...] | int | None = None, objects: tuple[int, int] = (1, 5),
            zipf: float = 1.0, keypoints: bool = False) -> Example:
    """The scene with this index; another ``size`` gives the same scene at another resolution.

    The arguments are the fields of `EmojiScenes`, which checks them.

    Returns:
      An `Example` with boxes and masks; ``image`` is uint8 ``[size, size, 3]``, masks are arrays too. Boxes are tight
      around the visible part of each object, in drawing order. Pixels outside the frame count as not ``visible``.
      Objects below `MIN_VISIBLE` are drawn but not labelled; at least one object is always labelled.
      With ``keypoints``, these are `EMOJI`: the drawing's outermost points along its own axes, where left is on the
      left of the upright drawing, mirrored or not. What a later object covers is occluded, what is beyond the frame
      not labelled.
    """
    words = vocabulary(classes, zipf)
    stream = _stream(seed, style, split, classes, objects, zipf)
    rng = np.random.Generator(np.random.Philox(key=(int(stream, 16) << 64) | index))
    least, most = objects
    count = least + int(rng.random() * (most - least + 1))
    draws = rng.random((count, 16))
    drawn = np.searchsorted(words.cumulative, draws[:, 0], side="right")
    image = background(rng, size)
    instances = np.zeros((size, size), np.uint8)
    areas, points = [], []
    for k, (c, u) in enumerate(zip(drawn, draws.tolist(), strict=True), start=1):
        codes = words.codes[c]
        code = codes[int(u[1] * len(codes))]
        place = drawing(style, code), u[2:], size, size * count**-0.25
        colour, alpha, left, top = _object(*place, inside=k == count)
        if keypoints:
            points.append(_keypoints(outermost_points(style, code), *place, inside=k == count))
        solid = alpha[..., 0] >= 0.5 * alpha[..., 0].max()
        areas.append(np.count_nonzero(solid))
        x, y = max(left, 0), max(top, 0)
        frame = slice(y, top + alpha.shape[0]), slice(x, left + alpha.shape[1])
        shown = slice(y - top, size - top), slice(x - left, size - left)
        image[frame] = cv2.add(cv2.multiply(image[frame], 255 - alpha[shown], scale=1 / 255), colour[shown])
        instances[frame][solid[shown]] = k
    visible = np.bincount(instances.ravel(), minlength=count + 1)[1:] / areas
    labelled = np.flatnonzero(visible >= MIN_VISIBLE)
    more = {}
    if keypoints:
        more = {"keypoints": _with_visibility(np.array(points), instances)[labelled],
                "keypoint_mirror": np.array(EMOJI.mirror, np.int32)}
    box_labels = drawn[labelled].astype(np.int32)
    new_number, class_value = np.zeros(256, np.uint8), np.zeros(256, np.uint16)
    new_number[labelled + 1] = range(1, len(labelled) + 1)
    class_value[labelled + 1] = box_labels + 1
    class_mask = cv2.LUT(instances, class_value)
    instances = cv2.LUT(instances, new_number)
    boxes = [cv2.boundingRect((instances == k).view(np.uint8)) for k in range(1, len(labelled) + 1)]
    return {
        "id": f"emoji_scenes/{style}/{split}/{seed}-{stream[:6]}/{index}",
        "image": image,
        "labels": np.unique(box_labels),
        "boxes": np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32) / np.float32(size),
        "box_labels": box_labels,
        "visible": visible[labelled].astype(np.float32),
        "instance_mask": instances,
        "class_mask": class_mask,
        **more,
    }


@functools.lru_cache(maxsize=64)
def _stream(seed, style, split, classes, objects, zipf) -> str:
    """16 hex digits that key the random numbers: sets that differ in any of these share no scene."""
    names = vocabulary(classes, zipf).names
    identity = repr((VERSION, seed, style, split, names, tuple(objects), float(zipf)))
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


class _Placement(NamedTuple):
    """How a drawing is put into the frame."""

    level: np.ndarray
    """The level of the drawing's pyramid that is used."""
    matrix: np.ndarray
    """float64 ``[2, 3]``, from the level's pixels to those of a patch, in OpenCV's coordinates, which refer to centres
    of pixels."""
    corner: tuple[int, int]
    """Left and top of the patch in the frame."""
    shape: tuple[int, int]
    """Width and height of the patch."""


def _place(levels: tuple[np.ndarray, ...], u: list[float], size: int, scale: float, inside: bool) -> _Placement:
    """
    Args:
      levels: see `drawing`.
      u: 14 uniform random numbers.
      size: width and height of the frame in pixels.
      scale: in pixels; the longer side becomes 0.32 to 0.85 of it.
      inside: whether the object must lie within the frame; the corners of one wider than the frame are still cut.
    """
    side = scale * 0.32 * (0.85 / 0.32) ** u[0]
    level = next((level for level in reversed(levels) if max(level.shape) >= side), levels[0])
    height, width = level.shape[:2]
    squash = 0.85 ** (2 * u[1] - 1)
    across = side / max(height, width) * min(squash, 1) * (-1 if _is_mirrored(u) else 1)
    down = side / max(height, width) * min(1 / squash, 1)
    angle = math.pi / 6 * (2 * u[3] - 1) * (1 if u[4] < 0.85 else 6)
    rotation = ((math.cos(angle) * across, -math.sin(angle) * down), (math.sin(angle) * across, math.cos(angle) * down))
    matrix, corner, shape = [], [], []
    for (a, b), v in zip(rotation, u[5:7], strict=True):
        half = (abs(a) * width + abs(b) * height) / 2
        margin = min(half * (1 if inside else 0.3), size / 2)
        centre = margin + v * (size - 2 * margin)
        start = math.floor(centre - half) - 1
        # OpenCV's coordinates refer to pixel centres, half a pixel off from edges.
        matrix.append((a, b, centre - start - 0.5 - a * (width - 1) / 2 - b * (height - 1) / 2))
        corner.append(start)
        shape.append(math.ceil(centre + half) + 1 - start)
    return _Placement(level, np.array(matrix), tuple(corner), tuple(shape))


def _is_mirrored(u: list[float]) -> bool:
    return u[2] >= 0.5


def _object(levels: tuple[np.ndarray, ...], u: list[float], size: int, scale: float, inside: bool):
    """One object, transformed; arguments as of `_place`.

    Returns:
      uint8 ``[h, w, 3]`` RGB times alpha, uint8 ``[h, w, 3]`` alpha repeated three times, left, top.
    """
    level, matrix, corner, shape = _place(levels, u, size, scale, inside)
    patch = cv2.warpAffine(level, matrix, shape, flags=cv2.INTER_LINEAR)
    alpha = cv2.cvtColor(patch[..., 3], cv2.COLOR_GRAY2RGB)
    return cv2.min(cv2.transform(patch, _jitter(*u[7:12])), alpha), alpha, *corner


def _keypoints(points: np.ndarray, levels: tuple[np.ndarray, ...], u: list[float], size: int, scale: float,
               inside: bool) -> np.ndarray:
    """float64 ``[4, 2]`` (x, y) in pixels of the frame: a drawing's `outermost_points`, transformed as `_object`."""
    level, matrix, corner, _ = _place(levels, u, size, scale, inside)
    centres = points * level.shape[1::-1] - 0.5
    moved = centres @ matrix[:, :2].T + matrix[:, 2] + 0.5 + corner
    return moved[list(EMOJI.mirror)] if _is_mirrored(u) else moved


def _with_visibility(points: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """float32 ``[n, 4, 3]``: points of the objects, in the order in which they were drawn, as in an `Example`.

    Args:
      points: float64 ``[n, 4, 2]`` in pixels of the frame.
      instances: uint8 ``[size, size]``: which object, counted from 1, was last drawn at each pixel.
    """
    size = len(instances)
    columns, rows = np.moveaxis(np.clip(points.astype(int), 0, size - 1), -1, 0)
    is_covered = instances[rows, columns] > np.arange(1, len(points) + 1)[:, None]
    is_inside = ((points >= 0) & (points < size)).all(-1)
    visibility = np.where(is_inside, np.where(is_covered, OCCLUDED, VISIBLE), UNLABELLED)
    keypoints = np.concatenate([points / size, visibility[..., None]], -1)
    return np.where(is_inside[..., None], keypoints, 0.0).astype(np.float32)


def _jitter(vivid: float, light: float, red: float, green: float, blue: float) -> np.ndarray:
    """float32 ``[3, 4]``: from RGBA (RGB times alpha) to RGB with changed saturation, brightness and tint."""
    saturation = 0.65 + 0.65 * vivid
    grey = (1 - saturation) / 3
    gain = [(0.75 + 0.4 * light) * (0.9 + 0.2 * tint) for tint in (red, green, blue)]
    lift = 0.1 * light * red
    rows = [[g * (grey + saturation * (i == j)) for j in range(3)] + [lift] for i, g in enumerate(gain)]
    return np.array(rows, np.float32)


@dataclasses.dataclass(frozen=True)
class EmojiScenes(Source):
    """Emoji scenes, composed on access. `data.tools.prepare.PreparedEmojiScenes` stores them on first use.

    One core composes about 900 scenes/s at 48 pixels and 500 at 160, or reads 2,500 prepared ones.
    """

    split: str = "train"
    """``train``, ``validation`` or ``test``, which share no scene."""
    images: int | None = None
    """Number of images; None for the split's default, see `SPLITS`. A smaller set is the start of a larger one."""
    size: int = 48
    """Width and height in pixels."""
    style: str = "twemoji"
    """Who drew the emoji: ``twemoji`` or ``openmoji``."""
    seed: int = 0
    classes: tuple[str, ...] | int | None = None
    """The vocabulary: names, or k for the k most frequent classes, or None for all."""
    objects: tuple[int, int] = (1, 5)
    """Fewest and most objects per scene. (1, 1) gives a dataset with one label per image."""
    zipf: float = 1.0
    """Exponent of the class frequencies; 0 for equally frequent classes."""
    quality: int = 92
    """JPEG quality, 1 to 100, without chroma subsampling."""
    keypoints: bool = False
    """Also give each object's keypoints (see `compose`). The scenes are the same."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {} if str(path) == "emoji_scenes" and not path.is_dir() else None

    @property
    def length(self) -> int:
        """Number of images."""
        return SPLITS[self.split] if self.images is None else self.images

    @property
    def fingerprint(self) -> str:
        """Identifies the content, composed or prepared."""
        stream = _stream(self.seed, self.style, self.split, self.classes, self.objects, self.zipf)
        rest = (stream, self.length, self.size, self.quality, art_version(self.style))
        if self.keypoints:
            rest += ("keypoints",)
        return "emoji_scenes-" + hashlib.blake2b(repr(rest).encode(), digest_size=8).hexdigest()

    def open(self) -> Dataset:
        """Raises: UserError when a field is out of range, or the style's packages are missing."""
        if self.split not in SPLITS:
            raise UserError(f"emoji_scenes has no split {self.split!r}{nearest(self.split, SPLITS)}")
        art_version(self.style)
        least, most = self.objects
        for expected, value, valid in (
            ("images of at least 1", self.length, self.length >= 1),
            ("size from 16 to 1024 pixels", self.size, 16 <= self.size <= 1024),
            ("seed of at least 0", self.seed, self.seed >= 0),
            ("objects (fewest, most) from 1 to 20", self.objects, 1 <= least <= most <= 20),
            ("zipf exponent of at least 0", self.zipf, self.zipf >= 0),
            ("quality from 1 to 100", self.quality, 1 <= self.quality <= 100),
        ):
            if not valid:
                raise UserError(f"emoji_scenes: expected {expected}, found {value}")
        return ComposedScenes(self)


class ComposedScenes(Dataset):
    """The scenes of an `EmojiScenes`, composed on access."""

    def __init__(self, source: EmojiScenes):
        self.source = source
        self.classes = vocabulary(source.classes, source.zipf).names
        self.multi_label = source.objects != (1, 1)
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return self.source.length

    def image_sizes(self) -> np.ndarray:
        return np.full((len(self), 2), self.source.size, np.int32)

    def __getitem__(self, index: int) -> Example:
        s = self.source
        index = range(s.length)[index]
        example = compose(s.seed, index, size=s.size, style=s.style, split=s.split, classes=s.classes,
                          objects=s.objects, zipf=s.zipf, keypoints=s.keypoints)
        example["image"] = simplejpeg.encode_jpeg(example["image"], quality=s.quality, colorspace="RGB",
                                                  colorsubsampling="444")
        return example
