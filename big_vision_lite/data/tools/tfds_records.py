"""An `Example` as a record of a TFDS dataset."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, decode, image_size
from big_vision_lite.data.source import OBJECT_ARRAYS, Example
from big_vision_lite.data.sources.tfds_features import MIRROR, swap_xy
from big_vision_lite.errors import BadImageError, UserError


def features_of(classes: tuple[str, ...], multi_label: bool, keys: frozenset[str], keypoints: int = 0):
    """TFDS's features of examples with these keys, and this many keypoints per object."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=list(classes))
    features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(None, None, 3))}
    features |= {"labels": tfds.features.Sequence(label)} if multi_label else {"label": label}
    if "image_id" in keys:
        features["image/id"] = tfds.features.Scalar(np.int64)
    if "boxes" in keys:
        objects = {"bbox": tfds.features.BBoxFeature(), "label": label}
        for name, (feature, dtype, shape, _) in OBJECT_ARRAYS.items():
            if name in keys:
                shape = tuple(keypoints if side is None else side for side in shape)
                objects[feature] = (tfds.features.Tensor(shape=shape, dtype=dtype) if shape
                                    else tfds.features.Scalar(dtype))
        features["objects"] = tfds.features.Sequence(objects)
    if MIRROR in keys:
        features[MIRROR] = tfds.features.Tensor(shape=(keypoints,), dtype=np.int32)
    for mask, dtype in (("instance_mask", np.uint8), ("class_mask", np.uint16)):
        if mask in keys:
            features[mask] = tfds.features.Image(shape=(None, None, 1), dtype=dtype, encoding_format="png")
    return tfds.features.FeaturesDict(features)


def encode(example: Example, features, multi_label: bool, keys: frozenset[str]) -> bytes:
    """The example as bytes that are always the same: by default, the order of a protocol buffer's map is random.

    Args:
      features: `features_of` the dataset; ``multi_label`` and ``keys`` as there.

    Raises:
      BadImageError: its image cannot be decoded.
      UserError: TFDS cannot store it.
    """
    stored = _stored(example, multi_label, keys)
    try:
        return _serializer(features).get_tf_example(features.encode_example(stored)).SerializeToString(
            deterministic=True)
    except Exception as error:  # TFDS raises several kinds
        raise UserError(f"example {example['id']!r} cannot be stored: {' '.join(str(error).split())}; correct the "
                        "source") from error


@functools.lru_cache(maxsize=4)
def _serializer(features):
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(features.get_serialized_info())


def _stored(example: Example, multi_label: bool, keys: frozenset[str]) -> dict:
    """The example as the input of `features_of`. Raises: BadImageError."""
    import tensorflow_datasets as tfds

    image = example["image"]
    try:
        image_size(image)
        if isinstance(image, np.ndarray) or not image.startswith((b"\xff\xd8", b"\x89PNG\r\n\x1a\n")):
            pixels = decode(image)
            image = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    except DecodeError as error:
        raise BadImageError(example["id"], str(error)) from error
    labels = example["labels"]
    if not multi_label and len(labels) > 1:
        raise UserError(f"example {example['id']!r} has {len(labels)} labels, but the source has one label per image; "
                        "remove the others, or make the source multi_label")
    # A file name need not be UTF-8. A single label of -1 stands for an unknown one.
    stored = {"id": example["id"].encode(errors="surrogateescape"), "image": image}
    stored |= {"labels": labels} if multi_label else {"label": labels[0] if len(labels) else -1}
    if "image_id" in keys:
        stored["image/id"] = example["image_id"]
    if "boxes" in keys:
        boxes = swap_xy(example["boxes"]).tolist()
        arrays = {a.feature: example[name].tolist() for name, a in OBJECT_ARRAYS.items() if name in keys}
        stored["objects"] = [
            {"bbox": tfds.features.BBox(*box), "label": label, **{name: values[i] for name, values in arrays.items()}}
            for i, (box, label) in enumerate(zip(boxes, example["box_labels"], strict=True))]
    if MIRROR in keys:
        stored[MIRROR] = example[MIRROR]
    for mask in ("instance_mask", "class_mask"):
        if mask in keys:
            value = example[mask]
            stored[mask] = value if isinstance(value, bytes) else cv2.imencode(".png", value)[1].tobytes()
    return stored
