"""Finds the features of a TFDS dataset that hold the image, its labels and its objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from big_vision_lite.data.source import OBJECT_ARRAYS
from big_vision_lite.data.sources.record_files import AGAIN
from big_vision_lite.errors import UserError, nearest, reading

LABEL_KEYS = ("label", "labels", "objects")
"""Names of features that may hold labels, in order of preference."""
ID_KEYS = ("id", "file_name", "image/filename")
"""Text features that may hold an image's id, in order of preference; without one, its index in the split is used."""
MIRROR = "keypoint_mirror"
"""The feature of that entry of an `Example`."""

_MASKS = ("instance_mask", "class_mask")


class Layout(NamedTuple):
    """Names of features."""

    image: str
    label: str
    objects: str | None
    """A sequence of objects; the same as ``label`` if only objects have labels."""
    object_label: str | None
    box: str | None
    more: tuple[str, ...]
    """Features of `source.OBJECT_ARRAYS` that the objects have."""
    confidence: str | None
    """The confidence of labels that are stored as objects."""
    masks: tuple[str, ...]
    id: str | None


def swap_xy(boxes: np.ndarray) -> np.ndarray:
    """``[n, 4]`` from TFDS's (ymin, xmin, ymax, xmax) to (x1, y1, x2, y2), or back."""
    return boxes[:, [1, 0, 3, 2]]


def layout_of(features, image_key: str | None, label_key: str | None, folder: str):
    """The `Layout` of a dataset's features, and their ``ClassLabel``.

    Raises:
      UserError: there is no such feature, or none of the right type; or the names of classes are damaged.
    """
    import tensorflow_datasets as tfds

    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    first = "image" if "image" in images else (images or [None])[0]
    image = _feature("image_key", image_key, first, images, folder)
    plain, objects = {}, {}
    for key, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, tfds.features.ClassLabel):
            _check_names(inner, folder, key)
            plain[key] = inner
        elif isinstance(feature, tfds.features.Sequence) and isinstance(inner, tfds.features.FeaturesDict):
            of_type = {type(f): k for k, f in reversed(inner.items())}
            name = "label" if "label" in inner else of_type.get(tfds.features.ClassLabel)
            if name and isinstance(inner[name], tfds.features.ClassLabel):
                _check_names(inner[name], folder, f"{key}-{name}")
                more = tuple(a.feature for a in OBJECT_ARRAYS.values() if a.feature in inner)
                confidence = "confidence" if "confidence" in inner else None
                objects[key] = inner[name], (key, name, of_type.get(tfds.features.BBoxFeature), more, confidence)
    labels = plain | {key: label for key, (label, _) in objects.items()}
    first = next((key for key in (*LABEL_KEYS, *labels) if key in labels), None)
    label_key = _feature("label_key", label_key, first, labels, folder)
    label = labels[label_key]
    objects_key = label_key if label_key in objects else "objects"
    same_classes = objects_key in objects and objects[objects_key][0].names == label.names
    object_layout = objects[objects_key][1] if same_classes else (None, None, None, (), None)
    masks = tuple(key for key in _MASKS if key in images)
    id_ = next((key for key in ID_KEYS if key in features and isinstance(features[key], tfds.features.Text)), None)
    return Layout(image, label_key, *object_layout, masks, id_), label


def _check_names(label, folder: str, feature: str) -> None:
    """TFDS overlooks it when the file of a label's class names is damaged. Raises: UserError."""
    file = label.get_names_filepath(folder, feature)
    with reading(file, AGAIN):
        if not file.exists():  # the classes have numbers instead of names
            return
        text = file.read_text()
    names = [line.strip() for line in text.split("\n") if line.strip()]
    cut = not text.endswith("\n")
    if cut or not len(names) == len(set(names)) == label.num_classes:
        raise UserError(f"{file} holds {len(names)} class names, {len(set(names))} of them different"
                        f"{', and its last line is cut' if cut else ''}; expected {label.num_classes}, each on its own "
                        f"line: {AGAIN}")


def _feature(field: str, key: str | None, default: str | None, valid, folder: str) -> str:
    if key in valid or (key is None and default):
        return key or default
    kind = "image" if field == "image_key" else "feature with class labels"
    if not valid:
        raise UserError(f"{folder} has no {kind}; choose another dataset")
    raise UserError(f"{folder} has no {kind} {field}={key!r}{nearest(str(key), valid)}")
