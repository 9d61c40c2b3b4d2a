"""Detection data as COCO stores it: one json file of annotations, and a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from big_vision_lite.data.boxes import BoxCount, fitted
from big_vision_lite.data.files import Strings, check_files, check_inside, read_file
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class CocoJson(Source):
    """Images with boxes from a COCO instances file. Classes are its categories by ascending id, gaps closed.

    Beside what an `Example` has: ``image_id`` int, ``crowd`` bool ``[n]``, ``area`` float32 ``[n]`` in square pixels as
    annotated. Boxes are clipped to their image; one without area is dropped, and both are counted.
    """

    annotations: str = ""
    """The json file."""
    images: str = ""
    """Folder of the images; the ``file_name`` of an image is relative to it."""
    masks: bool = False
    """Draw ``instance_mask`` from polygons and run lengths; where they overlap, the later one is seen."""
    keep_empty: bool = True
    """Keep images without a box."""

    def open(self) -> CocoRecords:
        """Reads the json file and lists the folder; no image is read.

        Raises:
          UserError: a file is missing, the json is not COCO's, two images have one id, or an annotation is of an
            unknown image or category.
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
        for name in ("images", "annotations", "categories"):
            if not isinstance(data, dict) or not isinstance(data.get(name), list):
                raise UserError(f"{self.annotations} has no list {name!r}; expected COCO's images, annotations and "
                                "categories")
        if not os.path.isdir(root):
            raise UserError(f"CocoJson.images is {self.images!r}, not a folder; expected the folder of the images")
        try:
            return self._records(data, root, hashlib.blake2b(raw, digest_size=8).hexdigest())
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.annotations}: an entry lacks {error}; expected COCO's instances format") from None

    def _records(self, data: dict, root: str, digest: str) -> CocoRecords:
        where = self.annotations
        categories = sorted(data["categories"], key=lambda c: c["id"])
        number = {c["id"]: i for i, c in enumerate(categories)}
        if len(number) < len(categories) or len({c["name"] for c in categories}) < len(categories):
            raise UserError(f"{where} has two categories of one id or name; each needs its own")
        entries = {image["id"]: (image, []) for image in data["images"]}
        if len(entries) < len(data["images"]):
            seen: set = set()
            twice = next(i["id"] for i in data["images"] if i["id"] in seen or seen.add(i["id"]))
            raise UserError(f"{where} has two images of id {twice}; ids must differ")
        for annotation in data["annotations"]:
            if annotation["image_id"] not in entries:
                raise UserError(f"{where}: annotation {annotation.get('id')} is of image {annotation['image_id']}, "
                                "which is not among the images")
            if annotation["category_id"] not in number:
                raise UserError(f"{where}: annotation {annotation.get('id')} is of category "
                                f"{annotation['category_id']}, which is not among the categories")
            entries[annotation["image_id"]][1].append(annotation)
        count, kept = BoxCount(), []
        for image, found in entries.values():
            check_inside(image["file_name"], where)
            xywh = np.array([a["bbox"] for a in found], np.float64).reshape(-1, 4)
            yxyx = np.stack([xywh[:, 1], xywh[:, 0], xywh[:, 1] + xywh[:, 3], xywh[:, 0] + xywh[:, 2]], 1)
            boxes, there = fitted(yxyx, image["height"], image["width"], count)
            if len(there) or self.keep_empty:
                kept.append((image, [found[i] for i in there], boxes))
        if not kept:
            raise UserError(f"{where} has no images" + (" with boxes" if entries else "") + "; choose another file")
        check_files(root, ((image["file_name"], where) for image, _, _ in kept))
        objects = [a for _, found, _ in kept for a in found]
        return CocoRecords(
            classes=tuple(c["name"] for c in categories),
            multi_label=True,
            fingerprint=f"coco-{digest}-{int(self.keep_empty)}{int(self.masks)}",
            category_ids=tuple(c["id"] for c in categories),
            count=count,
            root=root,
            names=Strings.of(image["file_name"] for image, _, _ in kept),
            image_ids=np.array([image["id"] for image, _, _ in kept], np.int64),
            sizes=np.array([(image["height"], image["width"]) for image, _, _ in kept], np.int32),
            objects=Ragged(np.cumsum([len(found) for _, found, _ in kept], dtype=np.int64),
                           np.array([number[a["category_id"]] for a in objects], np.int32)),
            boxes=np.concatenate([boxes for _, _, boxes in kept]),
            crowd=np.array([bool(a.get("iscrowd", 0)) for a in objects], np.bool_),
            area=np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in objects], np.float32),
            outlines=[a.get("segmentation") for a in objects] if self.masks else None,
        )


@dataclasses.dataclass(eq=False)
class CocoRecords(Records):
    """The annotations, compact.

    Attributes:
      category_ids: the file's own id of each class, for results in COCO's format.
      count: what became of the boxes.
      sizes: int32 ``[images, 2]``: (height, width) as annotated.
    """

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    category_ids: tuple[int, ...]
    count: BoxCount
    root: str
    names: Strings
    image_ids: np.ndarray
    sizes: np.ndarray
    objects: Ragged  # the class of each object, in the file's order
    boxes: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    outlines: list | None

    def __len__(self) -> int:
        return len(self.image_ids)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return self.names.at(index), np.unique(self.objects.row(index))

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        id_, labels = self.labels(index)
        here = slice(int(self.objects.ends[index - 1]) if index else 0, int(self.objects.ends[index]))
        example = {"id": id_, "image": read_file(f"{self.root}/{id_}", id_), "labels": labels,
                   "image_id": int(self.image_ids[index]), "boxes": self.boxes[here],
                   "box_labels": self.objects.row(index), "crowd": self.crowd[here], "area": self.area[here]}
        if self.outlines is not None:
            height, width = (int(side) for side in self.sizes[index])
            example["instance_mask"] = instance_mask(self.outlines[here], height, width)
        return example


def instance_mask(outlines: list, height: int, width: int) -> np.ndarray:
    """uint8 ``[height, width]``: k where the k-th outline, counted from 1, is seen; 0 elsewhere.

    Args:
      outlines: of each object COCO's ``segmentation``: polygons, run lengths, or None.

    Raises:
      UserError: more than 255 objects.
    """
    from pycocotools import mask as rle

    if len(outlines) > 255:
        raise UserError(f"an image has {len(outlines)} objects; a mask of them holds at most 255; leave masks out")
    mask = np.zeros((height, width), np.uint8)
    for k, outline in enumerate(outlines, 1):
        if not outline:
            continue
        if isinstance(outline, list) or isinstance(outline["counts"], list):
            outline = rle.frPyObjects(outline, height, width)
        mask[rle.decode(rle.merge(outline) if isinstance(outline, list) else outline).astype(bool)] = k
    return mask
