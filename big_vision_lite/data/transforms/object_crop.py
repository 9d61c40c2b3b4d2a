"""A crop around one object at a fixed size: the input of top-down keypoint heads."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, Header, decode_crop_resize, read_header
from big_vision_lite.data.keypoints import labelled
from big_vision_lite.data.source import Example, without_objects
from big_vision_lite.data.transforms.image import Size, Transform, check_size, height_width
from big_vision_lite.data.transforms.joint import GREY
from big_vision_lite.errors import BadImageError, UserError


@dataclasses.dataclass(frozen=True)
class ObjectCrop(Transform):
    """The box of an object (see `PerObject`), widened to the shape of the crop and enlarged, and what surrounds it. An
    image without a box is its own box. Beyond the image there is ``pad``.

    It returns the example without ``image``, ``boxes`` and other arrays about objects, but with

    ``keypoints``     float32 ``[k, 3]``, x and y in pixels of the crop, and visibility; if the example has them
    ``matrix``        float32 ``[2, 3]``, from pixels of the crop (x, y, 1) to pixels of the upright image (x, y)
    ``box``           float32 ``[4]``, (x1, y1, x2, y2) in pixels of the upright image
    ``box_score``     float32, a detector's; 1 for an annotated box
    ``key``           uint32 ``[2]``, seeds random choices that a head makes about this image

    Coordinates count edges of pixels, as in `data.transforms.joint`.

    Raises:
      BadImageError: the image cannot be decoded.
      UserError: an example has several boxes.
    """

    size: Size = (256, 192)
    """(Height, width) of the crop in pixels; persons are taller than wide."""
    enlarge: float = 1.25
    """Factor on the widened box, for context."""
    scale: tuple[float, float] = (0.7, 1.3)
    """Smallest and largest random factor on that; uniform. Without ``random``: 1."""
    rotation: float = 0.0
    """Largest random angle in degrees, in both directions; uniform."""
    random: bool = True
    """False: no random choices, for evaluation."""
    flip: bool = True
    """Mirror every second crop, at random."""
    pad: tuple[int, int, int] = GREY
    """RGB of what lies beyond the image."""

    def __post_init__(self) -> None:
        check_size("ObjectCrop.size", self.size)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < 100:
            raise UserError(f"ObjectCrop.scale is {self.scale!r}; expected (min, max) with 0 < min <= max < 100")
        if not 0.1 <= self.enlarge <= 10 or not 0 <= self.rotation <= 180:
            raise UserError(f"ObjectCrop: enlarge={self.enlarge}, rotation={self.rotation}; expected a factor from 0.1 "
                            "to 10 and an angle from 0 to 180 degrees")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*height_width(self.size), 3)

    def __call__(self, example: Example, rng: np.random.Generator, out: np.ndarray) -> Example:
        key = rng.integers(0, 1 << 32, 2, np.uint32)
        try:
            header = read_header(example["image"])
            box = _box(example, header)
            to_crop, flip = self._view(box, rng)
            self._write(example["image"], header, to_crop, out)
        except DecodeError as error:
            raise BadImageError(example["id"], str(error)) from error
        self._augment(out, rng)
        transformed = without_objects(example) | {
            "key": key, "box": box.astype(np.float32), "box_score": np.float32(example.get("box_score", 1.0)),
            "matrix": cv2.invertAffineTransform(to_crop).astype(np.float32)}
        del transformed["image"]
        if "keypoints" in example:
            keypoints = example["keypoints"][0].astype(np.float64)
            keypoints[:, :2] = moved(keypoints[:, :2] * [header.width, header.height], to_crop)
            keypoints[~labelled(keypoints)] = 0
            transformed["keypoints"] = keypoints[example["keypoint_mirror"] if flip else ...].astype(np.float32)
        return transformed

    def _view(self, box: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """float64 ``[2, 3]``, from pixels of the upright image to pixels of the crop; and whether it mirrors."""
        height, width = height_width(self.size)
        share, turn, mirror = rng.random(3).tolist() if self.random else (0.0, 0.5, 1.0)
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * share if self.random else 1.0
        angle = math.radians(self.rotation) * (2 * turn - 1)
        flip = self.flip and mirror < 0.5
        sides = np.maximum(box[2:] - box[:2], 1e-3)
        zoom = min(width / sides[0], height / sides[1]) / (self.enlarge * factor)
        across = np.array([-zoom if flip else zoom, zoom])[:, None]
        linear = across * [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        centre = np.array([width, height]) / 2 - linear @ (box[:2] + box[2:]) / 2
        return np.concatenate([linear, centre[:, None]], 1), flip

    def _write(self, image: bytes | np.ndarray, header: Header, to_crop: np.ndarray, out: np.ndarray) -> None:
        height, width = out.shape[:2]
        corners = moved(np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64),
                        cv2.invertAffineTransform(to_crop))
        (left, top), (right, bottom) = np.floor(corners.min(0)) - 1, np.ceil(corners.max(0)) + 1
        left, right = (int(np.clip(x, 0, header.width)) for x in (left, right))
        top, bottom = (int(np.clip(y, 0, header.height)) for y in (top, bottom))
        if left >= right or top >= bottom:
            out[:] = self.pad
            return
        # Shrinking averages over areas here; the affine transform after it interpolates at about the same scale.
        zoom = min(math.sqrt(abs(np.linalg.det(to_crop[:, :2]))), 1.0)
        rows, columns = (max(round(side * zoom), 1) for side in (bottom - top, right - left))
        window = np.empty((rows, columns, 3), np.uint8)
        decode_crop_resize(image, (top, left, bottom - top, right - left), window, header=header)
        # From pixels of the window to pixels of the crop. OpenCV's coordinates refer to pixel centres.
        step = np.array([(right - left) / columns, (bottom - top) / rows])
        linear = to_crop[:, :2] * step
        shift = moved(np.array([left, top], np.float64), to_crop) + linear @ [0.5, 0.5] - 0.5
        cv2.warpAffine(window, np.concatenate([linear, shift[:, None]], 1), (width, height), dst=out,
                       flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=self.pad)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points ``[..., 2]`` (x, y) by an affine matrix ``[2, 3]``."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def _box(example: Example, header: Header) -> np.ndarray:
    """float64 ``[4]``, in pixels of the upright image. Raises: UserError."""
    boxes = example.get("boxes", np.array([[0.0, 0.0, 1.0, 1.0]]))
    if len(boxes) != 1:
        raise UserError(f"image {example['id']!r} has {len(boxes)} boxes; ObjectCrop needs one example per object: "
                        "PerObject(SOURCE)")
    return boxes[0].astype(np.float64) * ([header.width, header.height] * 2)
