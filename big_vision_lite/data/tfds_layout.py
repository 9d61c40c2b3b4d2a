"""Which features of a TFDS data set hold the image, its labels and its objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from big_vision_lite.errors import UserError, nearest

LABEL_KEYS = ("label", "labels", "objects")
"""Where labels are looked for, in this order."""
ID_KEYS = ("id", "file_name", "image/filename")
"""Texts that name an image, in this order; without one, its place in the split does."""
OBJECT_KEYS = {"visible": ("visible", np.float32), "is_crowd": ("crowd", np.bool_),
               "is_difficult": ("difficult", np.bool_), "area": ("area", np.float32)}
"""What is said of an object beside its label and box, how an `Example` calls it, and its type there."""

_MASKS = ("instance_mask", "class_mask")


class Layout(NamedTuple):
    """Names of features."""

    image: str
    label: str
    objects: str | None
    """A sequence of objects; the same as ``label`` where labels are stored with objects only."""
    object_label: str | None
    box: str | None
    more: tuple[str, ...]
    """Those of `OBJECT_KEYS` that the objects have."""
    confidence: str | None
    """Of labels that are stored as objects: how sure each is."""
    masks: tuple[str, ...]
    id: str | None


def layout_of(features, image_key: str | None, label_key: str | None, folder: str):
    """The layout of a data set's features, and the ``ClassLabel``.

    Raises:
      UserError: no such feature, or none of that kind.
    """
    import tensorflow_datasets as tfds

    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    first = "image" if "image" in images else (images or [None])[0]
    image = _checked("image_key", image_key, first, images, folder)
    plain, objects = {}, {}
    for key, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, tfds.features.ClassLabel):
            plain[key] = inner
        elif isinstance(feature, tfds.features.Sequence) and isinstance(inner, tfds.features.FeaturesDict):
            of_type = {type(f): k for k, f in reversed(inner.items())}
            name = "label" if "label" in inner else of_type.get(tfds.features.ClassLabel)
            if name and isinstance(inner[name], tfds.features.ClassLabel):
                more = tuple(k for k in OBJECT_KEYS if k in inner)
                confidence = "confidence" if "confidence" in inner else None
                objects[key] = inner[name], (key, name, of_type.get(tfds.features.BBoxFeature), more, confidence)
    labels = plain | {key: label for key, (label, _) in objects.items()}
    first = next((key for key in (*LABEL_KEYS, *labels) if key in labels), None)
    label_key = _checked("label_key", label_key, first, labels, folder)
    label = labels[label_key]
    beside = label_key if label_key in objects else "objects"
    same = beside in objects and objects[beside][0].names == label.names
    known = objects[beside][1] if same else (None, None, None, (), None)
    masks = tuple(key for key in _MASKS if key in images)
    id_ = next((key for key in ID_KEYS if key in features and isinstance(features[key], tfds.features.Text)), None)
    return Layout(image, label_key, *known, masks, id_), label


def _checked(field: str, asked: str | None, first: str | None, valid, folder: str) -> str:
    if asked in valid or (asked is None and first):
        return asked or first
    kind = "image" if field == "image_key" else "feature with class labels"
    if not valid:
        raise UserError(f"{folder} has no {kind}; choose another data set")
    raise UserError(f"{folder} has no {kind} {field}={asked!r}{nearest(str(asked), valid)}")
