"""Detection data as COCO stores it: one json file of annotations, and a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.data.boxes import BoxCount, BoxRecords, fitted
from big_vision_lite.data.decode import DecodeError
from big_vision_lite.data.files import Strings, check_classes, check_files, check_inside
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Source
from big_vision_lite.errors import BadImageError, UserError

MOST_OBJECTS = 255
"""That an ``instance_mask`` of 8 bits can tell apart."""


@dataclasses.dataclass(frozen=True)
class CocoJson(Source):
    """Images with boxes from a COCO instances file. Classes are its categories by ascending id, gaps closed.

    Beside what an `Example` has: ``image_id`` int, ``crowd`` bool ``[n]``, ``area`` float32 ``[n]`` in square pixels as
    annotated. Labels are those of all boxes, crowds too. Boxes are clipped to their image, whose size is the json's;
    one without area is dropped, and both are counted. The id of an example is its ``file_name``.

    A file without annotations, such as that of COCO's test-dev, gives images for their predictions alone.
    """

    annotations: str = ""
    """The json file."""
    images: str = ""
    """Folder of the images; the ``file_name`` of an image is relative to it."""
    masks: bool = False
    """Draw ``instance_mask`` from polygons and run lengths, by pycocotools; where objects overlap, the later one is
    seen."""
    keep_empty: bool = True
    """Keep images without a box."""
    only: str | None = None
    """Text file of image ids (the json's numbers), one a line, ``#`` starts a comment: these images and no others, such
    as a minival."""
    without: str | None = None
    """The same for images that are left out; those that the json does not have are passed over."""

    def open(self) -> CocoRecords:
        """Reads the json file and lists the folder; no image is read.

        Raises:
          UserError: a file is missing, the json is not COCO's, two images have one id or file name, an annotation is
            of an unknown image or category, an image that ``only`` names is not there, or (with ``masks``) an image has
            more than 255 objects.
        """
        path, root = Path(self.annotations).expanduser(), os.path.expanduser(self.images)
        try:
            raw = path.read_bytes()
            data = json.loads(raw)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot read CocoJson.annotations {self.annotations!r}: {reason}") from None
        except ValueError as error:
            raise UserError(f"{self.annotations} is not valid JSON ({error}); it may have been cut") from None
        if isinstance(data, dict) and "images" in data and "categories" in data:
            data.setdefault("annotations", [])  # COCO's files of test images have none
        for name in ("images", "annotations", "categories"):
            if not isinstance(data, dict) or not isinstance(data.get(name), list):
                raise UserError(f"{self.annotations} has no list {name!r}; expected COCO's images, annotations and "
                                "categories")
        if not os.path.isdir(root):
            raise UserError(f"CocoJson.images is {self.images!r}, not a folder; expected the folder of the images")
        return self._records(data, root, hashlib.blake2b(raw, digest_size=8).hexdigest())

    def _records(self, data: dict, root: str, digest: str) -> CocoRecords:
        where = self.annotations
        _check_entries(where, "categories", data["categories"], id=int, name=str)
        categories = sorted(data["categories"], key=lambda c: c["id"])
        classes = tuple(c["name"] for c in categories)
        check_classes(classes, where)
        number = {c["id"]: i for i, c in enumerate(categories)}
        if len(number) < len(categories):
            raise UserError(f"{where} has two categories of one id; each needs its own")
        entries = self._images_with_annotations(data, number)
        chosen, names = self._chosen({image["id"] for image, _ in entries})
        count, kept = BoxCount(), []
        for image, found in entries:
            if image["id"] not in chosen:
                continue
            boxes, there = fitted(_edges(where, found), image["height"], image["width"], count)
            if len(there) or self.keep_empty:
                kept.append((image, [found[i] for i in there], boxes))
            if self.masks and len(there) > MOST_OBJECTS:
                raise UserError(f"{where}: image {image['file_name']!r} has {len(there)} objects, and a mask of them "
                                f"holds at most {MOST_OBJECTS}; leave out CocoJson.masks")
        if not kept:
            raise UserError(f"{where} has no images" + (" with boxes" if entries else "") + "; choose another file")
        check_files(root, ((image["file_name"], where) for image, _, _ in kept))
        objects = [a for _, found, _ in kept for a in found]
        return CocoRecords(
            classes=classes,
            multi_label=True,
            fingerprint=f"coco-{digest}-{int(self.keep_empty)}{int(self.masks)}{names}",
            unlabelled=not data["annotations"],
            category_ids=tuple(c["id"] for c in categories),
            count=count,
            root=root,
            names=Strings.of(image["file_name"] for image, _, _ in kept),
            image_ids=np.array([image["id"] for image, _, _ in kept], np.int64),
            sizes=np.array([(image["height"], image["width"]) for image, _, _ in kept], np.int32),
            objects=Ragged(np.cumsum([len(found) for _, found, _ in kept], dtype=np.int64),
                           np.array([number[a["category_id"]] for a in objects], np.int32)),
            boxes=np.concatenate([boxes for _, _, boxes in kept]),
            crowd=np.array([bool(a.get("iscrowd")) for a in objects], np.bool_),
            area=np.array([_area(a) for a in objects], np.float32),
            outlines=self._outlines(kept) if self.masks else None,
        )

    def _chosen(self, there: set[int]) -> tuple[set[int], str]:
        """Of the ids that are there, those to read, and what names the choice. Raises: UserError."""
        if self.only is None and self.without is None:
            return there, ""
        only, without = (None if path is None else _ids(field, path) for field, path in
                         (("only", self.only), ("without", self.without)))
        if only is not None and (missing := sorted(only - there)):
            raise UserError(f"CocoJson.only: {self.only} names image {missing[0]}, which {self.annotations} does not "
                            f"have ({len(missing):,} of {len(only):,} such); give the annotations that the list is of")
        if without and not without & there:
            raise UserError(f"CocoJson.without: {self.annotations} has none of the {len(without):,} images that "
                            f"{self.without} names, such as {min(without)}; give the list that is of these annotations")
        chosen = (there if only is None else only) - (without or set())
        if not chosen:
            raise UserError(f"{self.annotations}: CocoJson.only and CocoJson.without leave no image; loosen them")
        digest = hashlib.blake2b(repr(sorted(chosen)).encode(), digest_size=8).hexdigest()
        return chosen, f"-{digest}"

    def _images_with_annotations(self, data: dict, number: dict[int, int]) -> list[tuple[dict, list[dict]]]:
        """Each image with its annotations, in the file's order, after all were checked. Raises: UserError."""
        where = self.annotations
        _check_entries(where, "images", data["images"], id=int, file_name=str, height=(int, float), width=(int, float))
        _check_entries(where, "annotations", data["annotations"], image_id=int, category_id=int, bbox=list)
        entries: dict[int, tuple[dict, list[dict]]] = {}
        names = set()
        for image in data["images"]:
            if image["id"] in entries:
                raise UserError(f"{where} has two images of id {image['id']}; ids must differ")
            if image["file_name"] in names:
                raise UserError(f"{where} has two images of file name {image['file_name']!r}; expected each once, with "
                                "all its annotations")
            if not (image["height"] >= 1 and image["width"] >= 1):
                raise UserError(f"{where}: image {image['id']} has height {image['height']} and width "
                                f"{image['width']}; expected its size in pixels")
            check_inside(image["file_name"], where)
            names.add(image["file_name"])
            entries[image["id"]] = (image, [])
        for annotation in data["annotations"]:
            if annotation["image_id"] not in entries:
                raise UserError(f"{where}: annotation {annotation.get('id')} is of image {annotation['image_id']}, "
                                "which is not among the images")
            if annotation["category_id"] not in number:
                raise UserError(f"{where}: annotation {annotation.get('id')} is of category "
                                f"{annotation['category_id']}, which is not among the categories")
            entries[annotation["image_id"]][1].append(annotation)
        return list(entries.values())

    def _outlines(self, kept: list[tuple[dict, list[dict], np.ndarray]]) -> Strings:
        """Of each image, as text: as Python's lists the outlines of COCO take 2.5 GB."""
        return Strings.of(json.dumps([a.get("segmentation") for a in found]) for _, found, _ in kept)


def _check_entries(where: str, kind: str, entries: list, **fields: type | tuple[type, ...]) -> None:
    """Raises: UserError when an entry lacks a field or has it of another type."""
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{where}: {kind}[{place}] is not an object with {', '.join(fields)}, as COCO's are")
        for name, types in fields.items():
            if not isinstance(entry.get(name), types):
                number = f" (id {entry['id']!r})" if "id" in entry else ""
                found = f"has {name}={entry[name]!r}" if name in entry else f"lacks {name!r}"
                wanted = {int: "a whole number", str: "a text", list: "[left, top, width, height]"}
                raise UserError(f"{where}: {kind}[{place}]{number} {found}; expected {wanted.get(types, 'a number')}, "
                                "as in COCO's instances format")


def _edges(where: str, annotations: list[dict]) -> np.ndarray:
    """float64 ``[n, 4]``: (ymin, xmin, ymax, xmax) in pixels. Raises: UserError."""
    try:
        left, top, width, height = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4).T
        if len(left) == len(annotations):
            return np.stack([top, left, top + height, left + width], 1)
    except (TypeError, ValueError):
        pass
    wrong = next(a for a in annotations if len(a["bbox"]) != 4 or any(type(x) not in (int, float) for x in a["bbox"]))
    raise UserError(f"{where}: annotation {wrong.get('id')} has bbox={wrong['bbox']!r}; expected the four numbers "
                    "[left, top, width, height]")


def _ids(field: str, path: str) -> set[int]:
    """The numbers in a text file. Raises: UserError."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read CocoJson.{field} {path!r}: {error}; expected a text file of image ids, one a "
                        "line") from None
    lines = [line.partition("#")[0].strip() for line in lines]
    for number, line in enumerate(lines, 1):
        if line and not line.isdecimal():
            raise UserError(f"{path}: line {number} is {line[:40]!r}; expected the id of an image as a whole number")
    ids = {int(line) for line in lines if line}
    if not ids:
        raise UserError(f"{path} names no image; expected image ids, one a line")
    return ids


def _area(annotation: dict) -> float:
    area = annotation.get("area")
    return area if isinstance(area, int | float) else annotation["bbox"][2] * annotation["bbox"][3]


@dataclasses.dataclass(eq=False)
class CocoRecords(BoxRecords):
    """The annotations, compact.

    Attributes:
      category_ids: the file's own id of each class, for results in COCO's format.
      image_ids: int64 ``[images]``: the file's own id of each image.
      unlabelled: the file has no annotations at all.
    """

    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    outlines: Strings | None  # of each image: its objects' segmentations, as json
    unlabelled: bool = False

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        example, here = self._example(index)
        if self.unlabelled:
            return {"id": example["id"], "image": example["image"], "labels": example["labels"],
                    "image_id": int(self.image_ids[index]), "unlabelled": True}
        example |= {"image_id": int(self.image_ids[index]), "crowd": self.crowd[here], "area": self.area[here]}
        if self.outlines is not None:
            height, width = (int(side) for side in self.sizes[index])
            try:
                example["instance_mask"] = instance_mask(json.loads(self.outlines.raw(index)), height, width)
            except DecodeError as error:
                raise BadImageError(example["id"], str(error)) from error
        return example


def instance_mask(outlines: list[Any], height: int, width: int) -> np.ndarray:
    """uint8 ``[height, width]``: k where the k-th outline, counted from 1, is seen; 0 elsewhere.

    Args:
      outlines: of at most 255 objects COCO's ``segmentation``: polygons, run lengths (compressed or not), or None.

    Raises:
      DecodeError: one of them is none of these, or of another size.
    """
    from pycocotools import mask as rle

    mask = np.zeros((height, width), np.uint8, order="F")  # as pycocotools decodes
    for k, outline in enumerate(outlines, 1):
        try:
            if isinstance(outline, list):  # pycocotools would take four numbers for a box; they enclose nothing
                outline = [polygon for polygon in outline if len(polygon) >= 6]
            if not outline:
                continue
            if isinstance(outline, list):
                outline = rle.merge(rle.frPyObjects(outline, height, width))
            elif isinstance(outline["counts"], list):
                outline = rle.frPyObjects(outline, height, width)
            inside = rle.decode(outline).view(np.bool_)
            if inside.shape != mask.shape:
                raise ValueError(f"it is of {inside.shape[1]} x {inside.shape[0]} pixels")
            np.copyto(mask, np.uint8(k), where=inside)
        except Exception as error:  # pycocotools raises bare Exception, among others
            raise DecodeError(f"the segmentation of its object {k} cannot be drawn on {width} x {height} pixels "
                              f"({error})") from error
    return np.ascontiguousarray(mask)
