"""One example per object: for heads that look at one person at a time, in a crop around a box."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from big_vision_lite.data.source import OBJECT_ARRAYS, Dataset, Example, Source, without_objects
from big_vision_lite.data.sources.box_records import PixelPosition, clip_boxes, turn_boxes
from big_vision_lite.data.sources.coco_json import CocoDataset, Id
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.system.parse import parse_json, read_bytes


class Detection(msgspec.Struct, gc=False):
    """An entry of a results file in COCO's format."""

    image_id: Id
    category_id: Id
    bbox: tuple[PixelPosition, PixelPosition, PixelPosition, PixelPosition]  # left, top, width, height
    score: Annotated[float, Meta(ge=-1e6, le=1e6)]


@dataclasses.dataclass(frozen=True)
class PerObject(Source):
    """The objects of another source, one example each, with the whole image and this object's box alone.

    By default these are the annotated objects that have labelled keypoints and are no crowds. With ``boxes`` they are a
    detector's, and have no keypoints; metrics then compare with all annotated objects.

    The id of an example is ``IMAGE#NUMBER``. Beside what the source has: ``image_index`` and ``object_index`` (which of
    the source's images, and which of its objects; -1 for a detection) and ``box_score``.
    """

    source: Source
    """Images with boxes and keypoints, such as ``CocoJson(..., keypoints=True)``."""
    boxes: str | None = None
    """A detector's results in COCO's format, such as ``bvl evaluate DETECTOR --submission FILE`` writes."""
    min_score: float = 0.0
    """Detections of a lower score are left out."""
    classes: tuple[str, ...] | None = None
    """Objects of these classes only; None: all."""

    def open(self) -> ObjectDataset:
        """Raises: UserError when the source has no keypoints, no such class or, with ``boxes``, not COCO's ids; or when
        no object is left."""
        if isinstance(self.source, PerObject):
            raise UserError("PerObject.source is a PerObject itself; expected a source of images with keypoints")
        images = self.source.open()
        names = images.classes if self.classes is None else self.classes
        for name in names:
            if name not in images.classes:
                raise UserError(f"PerObject.classes: the source has no class {name!r}{nearest(name, images.classes)}")
        class_of = np.array([names.index(name) if name in names else -1 for name in images.classes], np.int32)
        if self.boxes is not None:
            return self._detected(images, names, class_of)
        if images.unlabelled:
            raise UserError("the images have no annotated objects; give a detector's: PerObject.boxes, or on the "
                            "command line --boxes FILE")
        objects = images.objects_with_keypoints()
        objects = objects[class_of[objects[:, 2]] >= 0]
        if not len(objects):
            raise UserError(f"none of {len(images):,} images has an object with labelled keypoints"
                            + (f" of the classes {', '.join(names)}" if self.classes else "") + "; expected a source "
                            "with keypoints, such as CocoJson(..., keypoints=True) of person_keypoints_train2017.json")
        identity = hashlib.blake2b(repr(names).encode(), digest_size=8).hexdigest()
        return ObjectDataset(images, names, f"objects-{identity}-{images.fingerprint}", objects[:, 0], objects[:, 1],
                             class_of[objects[:, 2]])

    def _detected(self, images: Dataset, names: tuple[str, ...], class_of: np.ndarray) -> ObjectDataset:
        """The objects in the file ``boxes``. Raises: UserError."""
        if not isinstance(images, CocoDataset):
            raise UserError(f"PerObject.boxes refers to COCO's ids of images and categories, which "
                            f"{type(self.source).__name__} does not know; take CocoJson")
        raw = read_bytes(Path(os.path.expanduser(self.boxes)), "PerObject.boxes is a results file in COCO's format")
        detections = parse_json(raw, list[Detection], self.boxes, "expected COCO's results: a list of image_id, "
                                "category_id, bbox and score")
        row_of = {id_: row for row, id_ in enumerate(images.image_ids.tolist())}
        label_of = {id_: int(class_of[label]) for label, id_ in enumerate(images.category_ids)}
        used = [d for d in detections if d.image_id in row_of and label_of.get(d.category_id, -1) >= 0
                and d.score >= self.min_score]
        if not used:
            raise UserError(f"{self.boxes}: none of its {len(detections):,} detections is in an image of the source, "
                            f"of the class {' or '.join(names)}, with a score of at least {self.min_score:g}; "
                            "expected a detector's results for these images")
        used.sort(key=lambda detection: row_of[detection.image_id])
        rows = np.array([row_of[detection.image_id] for detection in used], np.int32)
        corners = np.array([detection.bbox for detection in used], np.float64)
        corners[:, 2:] += corners[:, :2]
        boxes, valid, _ = clip_boxes(corners, images.sizes[rows], self.boxes)
        identity = hashlib.blake2b(raw + repr((names, self.min_score)).encode(), digest_size=8).hexdigest()
        labels = np.array([label_of[used[i].category_id] for i in valid], np.int32)
        scores = np.array([used[i].score for i in valid], np.float32)
        return ObjectDataset(images, names, f"detections-{identity}-{images.fingerprint}", rows[valid],
                             np.full(len(valid), -1, np.int32), labels, boxes, scores)


class ObjectDataset(Dataset):
    """The objects of ``images``.

    Attributes:
      images: the dataset that they are in, whose classes may be more.
      owner: int32 ``[n]``: the image of each object.
      detected: whether these are a detector's boxes and not the annotated ones.
    """

    multi_label = False

    def __init__(self, images: Dataset, classes: tuple[str, ...], fingerprint: str, owner: np.ndarray,
                 number: np.ndarray, label: np.ndarray, boxes: np.ndarray | None = None,
                 scores: np.ndarray | None = None):
        self.images, self.classes, self.fingerprint = images, classes, fingerprint
        self.owner, self._number, self._label, self._boxes, self._scores = owner, number, label, boxes, scores
        self.unlabelled, self.notes = images.unlabelled, images.notes
        self._first = np.searchsorted(owner, owner)  # of the objects of the same image

    @property
    def detected(self) -> bool:
        return self._boxes is not None

    def __len__(self) -> int:
        return len(self.owner)

    def _name(self, index: int, id_: str) -> str:
        number = index - self._first[index] if self.detected else self._number[index]
        return f"{id_}#{number}"

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return self._name(index, self.images.labels(int(self.owner[index]))[0]), self._label[index : index + 1]

    def image_sizes(self) -> np.ndarray:
        return self.images.image_sizes()[self.owner]

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        image = self.images[int(self.owner[index])]
        example = without_objects(image) | {
            "id": self._name(index, image["id"]), "labels": self._label[index : index + 1],
            "box_labels": self._label[index : index + 1], "image_index": np.int32(self.owner[index]),
            "object_index": np.int32(self._number[index]), "box_score": np.float32(1.0)}
        if self.detected:
            boxes = self._boxes[index : index + 1]
            example["boxes"] = turn_boxes(boxes, image["orientation"]) if "orientation" in image else boxes
            return example | {"box_score": self._scores[index], "unlabelled": True}
        this = slice(self._number[index], self._number[index] + 1)
        return example | {name: image[name][this] for name in ("boxes", *OBJECT_ARRAYS) if name in image}


def objects_below(dataset: Dataset) -> ObjectDataset:
    """The objects that a dataset selects from, below curation. Raises: UserError when it is not one per object."""
    while not isinstance(dataset, ObjectDataset) and isinstance(getattr(dataset, "source", None), Dataset):
        dataset = dataset.source
    if not isinstance(dataset, ObjectDataset):
        raise UserError(f"{type(dataset).__name__.removesuffix('Dataset')} has one example per image; keypoints are "
                        "scored per object: take PerObject(SOURCE)")
    return dataset

