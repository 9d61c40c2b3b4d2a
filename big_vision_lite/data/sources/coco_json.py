"""Detection data in COCO's format: a JSON file of annotations and a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from big_vision_lite.data.decode import DecodeError
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Source, without_objects
from big_vision_lite.data.sources.box_records import BoxCount, BoxDataset, clip_boxes
from big_vision_lite.data.sources.files import check_classes, check_files, check_inside, compact, read_lines
from big_vision_lite.errors import BadImageError, UserError

MAX_OBJECTS = 255
"""The largest value in an 8-bit ``instance_mask``."""


@dataclasses.dataclass(frozen=True)
class CocoJson(Source):
    """Images with boxes from a COCO instances file. Classes are its categories by ascending id, without gaps.

    Examples also have ``image_id``, ``crowd`` and ``area``. Labels are those of all boxes, including crowds. Boxes are
    clipped to their image, whose size is taken from the JSON file, and dropped if empty; both are counted. The id of an
    example is its ``file_name``.

    A file without annotations, such as that of COCO's test-dev, gives unlabelled images to predict on.
    """

    annotations: str = ""
    """The JSON file."""
    images: str = ""
    """Folder that ``file_name`` is relative to."""
    masks: bool = False
    """Draw ``instance_mask`` from polygons and run lengths, by pycocotools; later objects cover earlier ones."""
    keep_empty: bool = True
    """Keep images without boxes."""
    only: str | None = None
    """Text file of image ids (of the JSON file), one per line, with ``#`` comments: use these images only, for instance
    a minival."""
    without: str | None = None
    """Text file of image ids to leave out; unknown ids are ignored."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"annotations": str(path)} if path.suffix == ".json" and path.is_file() else None

    def open(self) -> CocoDataset:
        """Reads the JSON file and lists the folder; no image is read.

        Raises:
          UserError: a file is missing, the JSON is not COCO's, two images have the same id or file name, an annotation
            is of an unknown image or category, an image in ``only`` is unknown, or (with ``masks``) an image has more
            than 255 objects.
        """
        path, root = Path(self.annotations).expanduser(), os.path.expanduser(self.images)
        try:
            raw = path.read_bytes()
            data = json.loads(raw)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot read CocoJson.annotations {self.annotations!r}: {reason}") from None
        except ValueError as error:
            raise UserError(f"{self.annotations} is not valid JSON ({error}); it may be truncated") from None
        if isinstance(data, dict) and "images" in data and "categories" in data:
            data.setdefault("annotations", [])  # COCO's files of test images have none
        for name in ("images", "annotations", "categories"):
            if not isinstance(data, dict) or not isinstance(data.get(name), list):
                raise UserError(f"{self.annotations} has no list {name!r}; expected COCO's images, annotations and "
                                "categories")
        if not os.path.isdir(root):
            raise UserError(f"CocoJson.images is {self.images!r}, not a folder; expected the folder of the images")
        return self._dataset(data, root, hashlib.blake2b(raw, digest_size=8).hexdigest())

    def _dataset(self, data: dict, root: str, digest: str) -> CocoDataset:
        path = self.annotations
        _check_entries(path, "categories", data["categories"], id=int, name=str)
        categories = sorted(data["categories"], key=lambda c: c["id"])
        classes = tuple(c["name"] for c in categories)
        check_classes(classes, path)
        label_of = {c["id"]: i for i, c in enumerate(categories)}
        if len(label_of) < len(categories):
            raise UserError(f"{path} has two categories with the same id; ids must be unique")
        entries = self._images_with_annotations(data, label_of)
        selected, selection = self._selected({image["id"] for image, _ in entries})
        count, rows = BoxCount(), []
        for image, objects in entries:
            if image["id"] not in selected:
                continue
            boxes, valid = clip_boxes(_corners(path, objects), image["height"], image["width"], count)
            if len(valid) or self.keep_empty:
                rows.append((image, [objects[i] for i in valid], boxes))
            if self.masks and len(valid) > MAX_OBJECTS:
                raise UserError(f"{path}: image {image['file_name']!r} has {len(valid)} objects, but a mask holds at "
                                f"most {MAX_OBJECTS}; set CocoJson.masks to False")
        if not rows:
            raise UserError(f"{path} has no images" + (" with boxes" if entries else "") + "; choose another file")
        check_files(root, ((image["file_name"], path) for image, _, _ in rows))
        objects = [a for _, annotations, _ in rows for a in annotations]
        return CocoDataset(
            classes=classes,
            multi_label=True,
            fingerprint=f"coco-{digest}-{int(self.keep_empty)}{int(self.masks)}{selection}",
            unlabelled=not data["annotations"],
            category_ids=tuple(c["id"] for c in categories),
            count=count,
            root=root,
            names=compact(image["file_name"] for image, _, _ in rows),
            image_ids=np.array([image["id"] for image, _, _ in rows], np.int64),
            sizes=np.array([(image["height"], image["width"]) for image, _, _ in rows], np.int32),
            objects=Ragged.of([label_of[a["category_id"]] for a in annotations] for _, annotations, _ in rows),
            boxes=np.concatenate([boxes for _, _, boxes in rows]),
            crowd=np.array([bool(a.get("iscrowd")) for a in objects], np.bool_),
            area=np.array([_area(a) for a in objects], np.float32),
            # As JSON text: as Python lists, the segmentations of COCO take 2.5 GB.
            segmentations=compact(json.dumps([a.get("segmentation") for a in annotations])
                                  for _, annotations, _ in rows) if self.masks else None,
        )

    def _selected(self, ids: set[int]) -> tuple[set[int], str]:
        """The ids to use, and a part of the fingerprint. Raises: UserError."""
        if self.only is None and self.without is None:
            return ids, ""
        only, without = (None if path is None else _read_ids(field, path) for field, path in
                         (("only", self.only), ("without", self.without)))
        if only is not None and (missing := sorted(only - ids)):
            raise UserError(f"CocoJson.only: image {missing[0]} of {self.only} is not in {self.annotations} "
                            f"({len(missing):,} of {len(only):,} are missing); give a list for these annotations")
        if without and not without & ids:
            raise UserError(f"CocoJson.without: none of the {len(without):,} images of {self.without}, such as "
                            f"{min(without)}, is in {self.annotations}; give a list for these annotations")
        selected = (ids if only is None else only) - (without or set())
        if not selected:
            raise UserError(f"{self.annotations}: CocoJson.only and CocoJson.without leave no image; use fewer "
                            "restrictions")
        return selected, "-" + hashlib.blake2b(repr(sorted(selected)).encode(), digest_size=8).hexdigest()

    def _images_with_annotations(self, data: dict, label_of: dict[int, int]) -> list[tuple[dict, list[dict]]]:
        """The images and their annotations, checked, in the order of the file. Raises: UserError."""
        path = self.annotations
        _check_entries(path, "images", data["images"], id=int, file_name=str, height=(int, float), width=(int, float))
        _check_entries(path, "annotations", data["annotations"], image_id=int, category_id=int, bbox=list)
        entries: dict[int, tuple[dict, list[dict]]] = {}
        names = set()
        for image in data["images"]:
            if image["id"] in entries:
                raise UserError(f"{path} has two images with id {image['id']}; ids must be unique")
            if image["file_name"] in names:
                raise UserError(f"{path} has two images with file name {image['file_name']!r}; expected one entry per "
                                "image")
            if not (image["height"] >= 1 and image["width"] >= 1):
                raise UserError(f"{path}: image {image['id']} has height {image['height']} and width {image['width']}; "
                                "expected its size in pixels")
            check_inside(image["file_name"], path)
            names.add(image["file_name"])
            entries[image["id"]] = (image, [])
        for annotation in data["annotations"]:
            if annotation["image_id"] not in entries:
                raise UserError(f"{path}: annotation {annotation.get('id')} is of image {annotation['image_id']}, "
                                "which is not among the images")
            if annotation["category_id"] not in label_of:
                raise UserError(f"{path}: annotation {annotation.get('id')} is of category "
                                f"{annotation['category_id']}, which is not among the categories")
            entries[annotation["image_id"]][1].append(annotation)
        return list(entries.values())


def _check_entries(path: str, kind: str, entries: list, **fields: type | tuple[type, ...]) -> None:
    """Raises: UserError when a field of an entry is missing or has the wrong type."""
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {kind}[{i}] is not an object; expected one with {', '.join(fields)}")
        for name, types in fields.items():
            if not isinstance(entry.get(name), types):
                id_ = f" (id {entry['id']!r})" if "id" in entry else ""
                problem = f"has {name}={entry[name]!r}" if name in entry else f"lacks {name!r}"
                expected = {int: "an integer", str: "a string", list: "[left, top, width, height]"}
                raise UserError(f"{path}: {kind}[{i}]{id_} {problem}; expected {expected.get(types, 'a number')}, as "
                                "in COCO's instances format")


def _corners(path: str, annotations: list[dict]) -> np.ndarray:
    """float64 ``[n, 4]``: (x1, y1, x2, y2) in pixels. Raises: UserError."""
    try:
        left, top, width, height = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4).T
        if len(left) == len(annotations):
            return np.stack([left, top, left + width, top + height], 1)
    except (TypeError, ValueError):
        pass
    wrong = next(a for a in annotations if len(a["bbox"]) != 4 or any(type(x) not in (int, float) for x in a["bbox"]))
    raise UserError(f"{path}: annotation {wrong.get('id')} has bbox={wrong['bbox']!r}; expected four numbers "
                    "[left, top, width, height]")


def _read_ids(field: str, path: str) -> set[int]:
    """The image ids in a text file. Raises: UserError."""
    entries = [line.partition("#")[0].strip()
               for line in read_lines(path, f"CocoJson.{field}", "a text file of image ids, one per line")]
    for entry in filter(None, entries):
        if not entry.isdecimal():
            raise UserError(f"{path} has the line {entry[:40]!r}; expected an image id, an integer")
    ids = {int(entry) for entry in entries if entry}
    if not ids:
        raise UserError(f"{path} has no image ids; expected one per line")
    return ids


def _area(annotation: dict) -> float:
    area = annotation.get("area")
    return area if isinstance(area, int | float) else annotation["bbox"][2] * annotation["bbox"][3]


@dataclasses.dataclass(eq=False)
class CocoDataset(BoxDataset):
    """Images and annotations of a COCO file.

    Attributes:
      category_ids: the category id of each class, for results in COCO's format.
      image_ids: int64 ``[images]``: the file's id of each image.
      unlabelled: the file has no annotations at all.
    """

    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    segmentations: pa.LargeBinaryArray | None  # per image: its objects' segmentations, as JSON
    unlabelled: bool = False

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        example, span = self._example(index)
        example["image_id"] = int(self.image_ids[index])
        if self.unlabelled:
            return without_objects(example) | {"unlabelled": True}
        example |= {"crowd": self.crowd[span], "area": self.area[span]}
        if self.segmentations is not None:
            height, width = (int(side) for side in self.sizes[index])
            try:
                example["instance_mask"] = instance_mask(json.loads(self.segmentations[index].as_py()), height, width)
            except DecodeError as error:
                raise BadImageError(example["id"], str(error)) from error
        return example


def instance_mask(segmentations: list[Any], height: int, width: int) -> np.ndarray:
    """uint8 ``[height, width]``: k where the k-th object, counted from 1, is visible; 0 elsewhere.

    Args:
      segmentations: at most 255 of COCO's: polygons, run lengths (compressed or not), or None.

    Raises:
      DecodeError: one of them is none of these, or of another size.
    """
    from pycocotools import mask as rle

    mask = np.zeros((height, width), np.uint8, order="F")  # pycocotools' order
    for k, segmentation in enumerate(segmentations, 1):
        try:
            if isinstance(segmentation, list):  # pycocotools would read four numbers, which enclose nothing, as a box
                segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
            if not segmentation:
                continue
            if isinstance(segmentation, list):
                segmentation = rle.merge(rle.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):
                segmentation = rle.frPyObjects(segmentation, height, width)
            inside = rle.decode(segmentation).view(np.bool_)
            if inside.shape != mask.shape:
                raise ValueError(f"its size is {inside.shape[1]} x {inside.shape[0]} pixels")
            np.copyto(mask, np.uint8(k), where=inside)
        except Exception as error:  # pycocotools raises bare Exception, among others
            raise DecodeError(f"the segmentation of object {k} cannot be drawn on {width} x {height} pixels ({error})"
                              ) from error
    return np.ascontiguousarray(mask)
