"""Scenes of emoji: an endless labelled data set that is a pure function of (seed, index).

A scene has one to five objects of 824 classes whose frequencies follow Zipf's law, at any place, scale and
turn, hiding one another, on a background that knows nothing of them. `EmojiScenes` composes on access, so
nothing needs to be prepared or stored, and the first n images of a large set are the set of n images:

    records = EmojiScenes("train", images=1_000_000).open()
    records[123_456]  # an Example: JPEG, labels, boxes, masks
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from big_vision_lite.data.emoji_art import art_version, background, drawing, emoji_classes
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import UserError, nearest

VERSION = 1
"""Rises whenever any scene changes."""
SPLITS = {"train": 1_000_000, "validation": 5_000, "test": 10_000}
"""The splits and how many images each has when nobody says otherwise."""
MIN_VISIBLE = 0.2
"""Objects of which less is seen are no longer labelled."""

_FREQUENCY_SEED = 20_240_229  # which class is frequent is one fact of this world, whatever the seed of a set


class Vocabulary(NamedTuple):
    """The classes of a set, in the order of their ids."""

    names: tuple[str, ...]
    codes: tuple[tuple[str, ...], ...]
    """The drawings of each class, see `emoji_art.EmojiClass`."""
    cumulative: np.ndarray
    """float64 ``[classes]``: the chance that an object has this class or one before."""


@functools.lru_cache(maxsize=64)
def vocabulary(classes: tuple[str, ...] | int | None = None, zipf: float = 1.0) -> Vocabulary:
    """The classes named, as frequent as ``rank ** -zipf``, where rank counts all classes from 1.

    Args:
      classes: names, which keep their order; k for the k most frequent, most frequent first; None for all.
      zipf: 0 makes all classes equally frequent.

    Raises:
      UserError: a name is unknown or repeated, or k is out of range.
    """
    known = emoji_classes()
    by_rank = np.random.Generator(np.random.Philox(key=_FREQUENCY_SEED)).permutation(len(known))
    ids = {c.name: i for i, c in enumerate(known)}
    if classes is None:
        chosen = list(range(len(known)))
    elif isinstance(classes, int):
        if not 1 <= classes <= len(known):
            raise UserError(f"classes={classes}: expected names, or a number up to {len(known)}")
        chosen = by_rank[:classes].tolist()
    else:
        for name in classes:
            if name not in ids:
                raise UserError(f"unknown emoji class {name!r}{nearest(str(name), ids)}")
        if not classes or len(set(classes)) < len(classes):
            raise UserError(f"classes={classes}: expected at least one name and none twice")
        chosen = [ids[name] for name in classes]
    rank = np.argsort(by_rank)[chosen] + 1.0
    weight = rank**-zipf
    cumulative = np.cumsum(weight / weight.sum())
    cumulative[-1] = 1
    return Vocabulary(tuple(known[i].name for i in chosen), tuple(known[i].codes for i in chosen), cumulative)


def compose(
    seed: int,
    index: int,
    *,
    size: int = 48,
    style: str = "twemoji",
    split: str = "train",
    classes: tuple[str, ...] | int | None = None,
    objects: tuple[int, int] = (1, 5),
    zipf: float = 1.0,
) -> Example:
    """The scene with this index; at another ``size`` it is the same scene with more or fewer pixels.

    The arguments are the fields of `EmojiScenes`, which checks them.

    Returns:
      All that an `Example` can have; ``image`` is uint8 ``[size, size, 3]``, masks are arrays too. Boxes are
      tight around what is seen of an object, in the order of drawing. ``visible`` counts pixels outside the
      frame as hidden. Objects of which less than `MIN_VISIBLE` is seen are drawn but not labelled; one object
      is always labelled.
    """
    words = vocabulary(classes, zipf)
    stream = _stream(seed, style, split, classes, objects, zipf)
    rng = np.random.Generator(np.random.Philox(key=(int(stream, 16) << 64) | index))
    least, most = objects
    count = least + int(rng.random() * (most - least + 1))
    draws = rng.random((count, 16))
    chosen = np.searchsorted(words.cumulative, draws[:, 0], side="right")
    image = background(rng, size)
    instances = np.zeros((size, size), np.uint8)
    areas = []
    for k, (c, u) in enumerate(zip(chosen, draws.tolist(), strict=True), start=1):
        codes = words.codes[c]
        levels = drawing(style, codes[int(u[1] * len(codes))])
        colour, alpha, left, top = _object(levels, u[2:], size, size * count**-0.25, inside=k == count)
        solid = alpha[..., 0] >= 0.5 * alpha[..., 0].max()
        areas.append(np.count_nonzero(solid))
        x, y = max(left, 0), max(top, 0)
        frame = slice(y, top + alpha.shape[0]), slice(x, left + alpha.shape[1])
        shown = slice(y - top, size - top), slice(x - left, size - left)
        image[frame] = cv2.add(cv2.multiply(image[frame], 255 - alpha[shown], scale=1 / 255), colour[shown])
        instances[frame][solid[shown]] = k
    visible = np.bincount(instances.ravel(), minlength=count + 1)[1:] / areas
    kept = np.flatnonzero(visible >= MIN_VISIBLE)
    box_labels = chosen[kept].astype(np.int32)
    renumber, of_class = np.zeros(256, np.uint8), np.zeros(256, np.uint16)
    renumber[kept + 1] = range(1, len(kept) + 1)
    of_class[kept + 1] = box_labels + 1
    class_mask = cv2.LUT(instances, of_class)
    instances = cv2.LUT(instances, renumber)
    boxes = [cv2.boundingRect((instances == k).view(np.uint8)) for k in range(1, len(kept) + 1)]
    return {
        "id": f"emoji_scenes/{style}/{split}/{seed}-{stream[:6]}/{index}",
        "image": image,
        "labels": np.unique(box_labels),
        "boxes": np.array([(y, x, y + h, x + w) for x, y, w, h in boxes], np.float32) / np.float32(size),
        "box_labels": box_labels,
        "visible": visible[kept].astype(np.float32),
        "instance_mask": instances,
        "class_mask": class_mask,
    }


@functools.lru_cache(maxsize=64)
def _stream(seed, style, split, classes, objects, zipf) -> str:
    """16 hex digits that key the scenes: sets that differ in any of these have no scene in common."""
    names = vocabulary(classes, zipf).names
    identity = repr((VERSION, seed, style, split, names, tuple(objects), float(zipf)))
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _object(levels: tuple[np.ndarray, ...], u: list[float], size: int, scale: float, inside: bool):
    """One object on its own.

    Args:
      levels: a `drawing`.
      u: 14 uniform numbers.
      size: width and height of the frame in pixels.
      scale: the longer side is 0.32 to 0.85 of this, in pixels.
      inside: whether the frame must not cut the object; one wider than the frame loses its corners still.

    Returns:
      uint8 ``[h, w, 3]`` RGB times alpha, uint8 ``[h, w, 3]`` alpha three times over, its left and its top.
    """
    side = scale * 0.32 * (0.85 / 0.32) ** u[0]
    level = next((level for level in reversed(levels) if max(level.shape) >= side), levels[0])
    height, width = level.shape[:2]
    squash = 0.85 ** (2 * u[1] - 1)
    across = side / max(height, width) * min(squash, 1) * (1 if u[2] < 0.5 else -1)
    down = side / max(height, width) * min(1 / squash, 1)
    angle = math.pi / 6 * (2 * u[3] - 1) * (1 if u[4] < 0.85 else 6)
    turn = (
        (math.cos(angle) * across, -math.sin(angle) * down),
        (math.sin(angle) * across, math.cos(angle) * down),
    )
    matrix, corner, shape = [], [], []
    for (a, b), v in zip(turn, u[5:7], strict=True):
        half = (abs(a) * width + abs(b) * height) / 2
        margin = min(half * (1 if inside else 0.3), size / 2)
        centre = margin + v * (size - 2 * margin)
        start = math.floor(centre - half) - 1
        # OpenCV's coordinates are those of pixel centres, half a pixel off from those of edges.
        matrix.append((a, b, centre - start - 0.5 - a * (width - 1) / 2 - b * (height - 1) / 2))
        corner.append(start)
        shape.append(math.ceil(centre + half) + 1 - start)
    patch = cv2.warpAffine(level, np.array(matrix), shape, flags=cv2.INTER_LINEAR)
    alpha = cv2.cvtColor(patch[..., 3], cv2.COLOR_GRAY2RGB)
    return cv2.min(cv2.transform(patch, _jitter(*u[7:12])), alpha), alpha, *corner


def _jitter(vivid: float, light: float, red: float, green: float, blue: float) -> np.ndarray:
    """float32 ``[3, 4]``: RGBA (RGB times alpha) to RGB of another saturation, brightness and tint."""
    saturation = 0.65 + 0.65 * vivid
    grey = (1 - saturation) / 3
    gain = [(0.75 + 0.4 * light) * (0.9 + 0.2 * tint) for tint in (red, green, blue)]
    lift = 0.1 * light * red
    rows = [[g * (grey + saturation * (i == j)) for j in range(3)] + [lift] for i, g in enumerate(gain)]
    return np.array(rows, np.float32)


@dataclasses.dataclass(frozen=True)
class EmojiScenes(Source):
    """Emoji scenes, composed on access or prepared on first use.

    One core composes some 900 scenes a second at 48 pixels and 500 at 160, or reads 2,500 prepared ones.
    """

    split: str = "train"
    """``train``, ``validation`` or ``test``: no two have a scene in common."""
    images: int | None = None
    """How many; None for the split's usual number, see `SPLITS`. Fewer images are the first ones of more."""
    size: int = 48
    """Width and height in pixels."""
    style: str = "twemoji"
    """Who drew the emoji: ``twemoji`` or ``openmoji``."""
    seed: int = 0
    classes: tuple[str, ...] | int | None = None
    """The vocabulary: names, or k for the k most frequent classes, or None for all."""
    objects: tuple[int, int] = (1, 5)
    """Fewest and most objects in a scene. (1, 1) gives a data set with one label an image."""
    zipf: float = 1.0
    """Exponent of the class frequencies; 0 makes all classes equally frequent."""
    quality: int = 92
    """JPEG quality, 1 to 100; colour is stored at full resolution."""
    prepared: bool = False
    """Compose once into ArrayRecord files below ``data_dir`` and read those ever after."""
    data_dir: str | None = None
    """TFDS's data directory; None for ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``."""

    @property
    def length(self) -> int:
        """How many images there are."""
        return SPLITS[self.split] if self.images is None else self.images

    @property
    def fingerprint(self) -> str:
        """Names the content: equal however it is stored."""
        stream = _stream(self.seed, self.style, self.split, self.classes, self.objects, self.zipf)
        rest = (stream, self.length, self.size, self.quality, art_version(self.style))
        return "emoji_scenes-" + hashlib.blake2b(repr(rest).encode(), digest_size=8).hexdigest()

    def open(self) -> Records:
        """Access to the scenes; the first call with ``prepared`` composes them all.

        Raises:
          UserError: a field is out of range, or the style's packages are missing.
        """
        self.check()
        if self.prepared:
            from big_vision_lite.data.emoji_tfds import open_prepared

            return open_prepared(self)
        return ComposedScenes(self)

    def check(self) -> None:
        """Raises UserError when a field is out of range, or the style's packages are missing."""
        if self.split not in SPLITS:
            raise UserError(f"emoji_scenes has no split {self.split!r}{nearest(self.split, SPLITS)}")
        art_version(self.style)
        least, most = self.objects
        for said, found, fine in (
            ("images of at least 1", self.length, self.length >= 1),
            ("size from 16 to 1024 pixels", self.size, 16 <= self.size <= 1024),
            ("seed of at least 0", self.seed, self.seed >= 0),
            ("objects (fewest, most) from 1 to 20", self.objects, 1 <= least <= most <= 20),
            ("zipf exponent of at least 0", self.zipf, self.zipf >= 0),
            ("quality from 1 to 100", self.quality, 1 <= self.quality <= 100),
        ):
            if not fine:
                raise UserError(f"emoji_scenes: expected {said}, found {found}")
        vocabulary(self.classes, self.zipf)


class ComposedScenes(Records):
    """The scenes of an `EmojiScenes`, composed when asked for."""

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
        example = compose(
            s.seed, index, size=s.size, style=s.style, split=s.split,
            classes=s.classes, objects=s.objects, zipf=s.zipf,
        )  # fmt: skip
        example["image"] = simplejpeg.encode_jpeg(
            example["image"], quality=s.quality, colorspace="RGB", colorsubsampling="444"
        )
        return example
