"""Detection data in COCO's format: a JSON file of annotations and a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta

from big_vision_lite.data.decode import DecodeError
from big_vision_lite.data.keypoints import labelled
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Source, without_objects
from big_vision_lite.data.sources.box_records import BoxDataset, PixelPosition, clip_boxes, turn_mask, turn_points
from big_vision_lite.data.sources.coco_keypoints import read_keypoints
from big_vision_lite.data.sources.files import (
    Fingerprint,
    check_classes,
    check_files,
    check_inside,
    compact,
    read_lines,
)
from big_vision_lite.errors import BadImageError, UserError, first_line
from big_vision_lite.system.parse import parse_json, read_bytes

MAX_OBJECTS = 255
"""The largest value in an 8-bit ``instance_mask``."""

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | str  # pycocotools and some public sets have text, too
Text = Annotated[str, Meta(max_length=1000)]
Side = Annotated[float, Meta(ge=1, lt=2**31, multiple_of=1)]


class CocoCategory(msgspec.Struct, gc=False):
    id: Id
    name: Text
    keypoints: list[Text] | None = None  # their names


class CocoImage(msgspec.Struct, gc=False):
    id: Id
    file_name: Text
    height: Side
    width: Side


class CocoAnnotation(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    bbox: tuple[PixelPosition, PixelPosition, PixelPosition, PixelPosition]  # left, top, width, height
    id: Any = None
    area: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    iscrowd: Annotated[float, Meta(ge=0, le=1, multiple_of=1)] | bool | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    keypoints: msgspec.Raw = msgspec.Raw(b"null")


class CocoInstances(msgspec.Struct):
    """COCO's file of instances or person keypoints, as far as it is used."""

    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation] = []  # COCO's files of test images have none


class RunLengths(msgspec.Struct):
    """A mask in columns: lengths of runs of pixels, outside and inside by turns, or the same compressed to text."""

    size: tuple[int, int]  # height, width
    counts: list[Annotated[int, Meta(ge=0, lt=2**32)]] | str


Segmentation = list[Annotated[list[PixelPosition], Meta(min_length=4)]] | RunLengths | None
_SEGMENTATION, _PARTS = msgspec.json.Decoder(Segmentation), msgspec.json.Decoder(list[msgspec.Raw])


@dataclasses.dataclass(frozen=True)
class CocoJson(Source):
    """Images with boxes from a COCO instances file. Classes are its categories by ascending id, without gaps.

    Examples also have ``image_id``, ``crowd`` and ``area``. Labels are those of all boxes, including crowds. Boxes are
    clipped to their image and dropped if empty; both are counted. Sizes in the JSON file must be those of the images,
    see `BoxDataset`. The id of an example is its ``file_name``.

    With ``keypoints``, examples also have ``keypoints`` and ``keypoint_mirror``. COCO's numbers count pixels, so 0 is
    the centre of the first one: 0.5 in the coordinates here, which count edges of pixels.

    A file without annotations, such as that of COCO's test-dev, gives unlabelled images to predict on.
    """

    annotations: str = ""
    """The JSON file."""
    images: str = ""
    """Folder that ``file_name`` is relative to."""
    masks: bool = False
    """Draw ``instance_mask`` from polygons and run lengths, by hotcoco; later objects cover earlier ones."""
    keypoints: bool = False
    """Read the keypoints of each object, such as those in person_keypoints_train2017.json."""
    keep_empty: bool = True
    """Keep images without boxes."""
    only: str | None = None
    """Text file of image ids (of the JSON file), one per line, with ``#`` comments: use these images only, for instance
    a minival."""
    without: str | None = None
    """Text file of image ids to leave out; unknown ids are ignored."""
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        if path.suffix.lower() == ".json" and path.is_file():
            return {"annotations": str(path)}
        files = sorted((path / "annotations").glob("instances_train*.json"))  # COCO's own folder
        return {"annotations": str(files[0]), "images": str(path / files[0].stem.removeprefix("instances_"))
                } if files else None

    def open(self) -> CocoDataset:
        """Reads the JSON file and the sizes and times of the images.

        Raises:
          UserError: a file is missing, the JSON is not COCO's, two images have the same id or file name, an annotation
            is of an unknown image or category, all boxes are empty, an image in ``only`` is unknown, (with ``masks``)
            an image has more than 255 objects, or (with ``keypoints``) as `read_keypoints`.
        """
        path, root = self.annotations, os.path.expanduser(self.images)
        raw = read_bytes(Path(os.path.expanduser(path)), "CocoJson.annotations is COCO's instances file")
        data = parse_json(raw, CocoInstances, path, "expected COCO's instances format, complete and without NaN")
        if not os.path.isdir(root):
            raise UserError(f"CocoJson.images is {self.images!r}, not a folder; expected the folder of the images")
        _check_ids(path, data)
        categories = sorted(data.categories, key=lambda category: category.id)
        classes = tuple(category.name for category in categories)
        check_classes(classes, path)
        label_of = {category.id: label for label, category in enumerate(categories)}
        selected, selection = self._selected({image.id for image in data.images})
        images = [image for image in data.images if image.id in selected]
        row_of = {image.id: row for row, image in enumerate(images)}
        annotations = sorted((annotation for annotation in data.annotations if annotation.image_id in selected),
                             key=lambda annotation: row_of[annotation.image_id])
        rows = np.array([row_of[annotation.image_id] for annotation in annotations], np.int64)
        sizes = np.array([(image.height, image.width) for image in images], np.int32).reshape(-1, 2)
        corners = np.array([annotation.bbox for annotation in annotations], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes, valid, count = clip_boxes(corners, sizes[rows], path)
        rows, annotations = rows[valid], [annotations[i] for i in valid]
        objects = np.bincount(rows, minlength=len(images))
        if self.masks and len(objects) and objects.max() > MAX_OBJECTS:
            raise UserError(f"{path}: image {images[objects.argmax()].file_name!r} has {objects.max()} objects, but a "
                            f"mask holds at most {MAX_OBJECTS}; set CocoJson.masks to False")
        kept = np.arange(len(images)) if self.keep_empty else np.flatnonzero(objects)
        if not len(kept):
            raise UserError(f"{path} has no images" + (" with boxes" if data.images else "") + "; choose another file")
        ends = np.cumsum(objects[kept])
        names = [images[i].file_name for i in kept]
        keypoints, mirror = read_keypoints(path, categories, annotations, sizes[rows]) if self.keypoints else (None, ())
        identity = check_files(root, ((name, path) for name in names), self.fingerprint)
        return CocoDataset(
            classes=classes,
            multi_label=True,
            fingerprint=f"coco-{hashlib.blake2b(raw, digest_size=8).hexdigest()}-{int(self.keep_empty)}"
                        f"{int(self.masks)}{'k' if self.keypoints else ''}{selection}-{identity}",
            unlabelled=not data.annotations,
            category_ids=tuple(category.id for category in categories),
            count=count,
            root=root,
            names=compact(names),
            image_ids=np.array([images[i].id for i in kept]),
            sizes=sizes[kept],
            objects=Ragged(ends, np.array([label_of[a.category_id] for a in annotations], np.int32)),
            boxes=boxes,
            crowd=np.array([bool(a.iscrowd) for a in annotations], np.bool_),
            area=np.array([a.bbox[2] * a.bbox[3] if a.area is None else a.area for a in annotations], np.float32),
            # As JSON text: as Python lists, the segmentations of COCO take 2.5 GB.
            segmentations=compact(_json_lists([a.segmentation for a in annotations], ends)) if self.masks else None,
            keypoints=keypoints,
            keypoint_mirror=np.array(mirror, np.int32),
        )

    def _selected(self, ids: set[Id]) -> tuple[set[Id], str]:
        """The ids to use, and a part of the fingerprint. Raises: UserError."""
        if self.only is None and self.without is None:
            return ids, ""
        only, without = (None if path is None else _read_ids(field, path, ids) for field, path in
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


def _check_ids(path: str, data: CocoInstances) -> None:
    """Raises: UserError when an id or a file name is not unique, or an annotation refers to an unknown one."""
    image_ids, category_ids = [image.id for image in data.images], [category.id for category in data.categories]
    for kind, ids in (("images", image_ids), ("categories", category_ids)):
        if len({type(id_) for id_ in ids}) > 1:
            raise UserError(f"{path} has {kind} with numbers and with texts as ids; expected one or the other")
        if (twice := _twice(ids)) is not None:
            raise UserError(f"{path} has two {kind} with id {twice}; ids must be unique")
    if (twice := _twice(image.file_name for image in data.images)) is not None:
        raise UserError(f"{path} has two images with file name {twice!r}; expected one entry per image")
    for image in data.images:
        check_inside(image.file_name, path)
    images, categories = set(image_ids), set(category_ids)
    for annotation in data.annotations:
        if annotation.image_id not in images:
            raise UserError(f"{path}: annotation {annotation.id} is of image {annotation.image_id}, which is not among "
                            "the images")
        if annotation.category_id not in categories:
            raise UserError(f"{path}: annotation {annotation.id} is of category {annotation.category_id}, which is not "
                            "among the categories")


def _twice(values: Iterable[Any]) -> Any:
    """The first value that is there twice, or None."""
    counts = Counter(values)
    return next((value for value, count in counts.items() if count > 1), None)


def _read_ids(field: str, path: str, of: set[Id]) -> set[Id]:
    """The image ids in a text file, of the kind of those given. Raises: UserError."""
    entries = [line.partition("#")[0].strip()
               for line in read_lines(path, f"CocoJson.{field}", "a text file of image ids, one per line")]
    entries = [entry for entry in entries if entry]
    if not entries:
        raise UserError(f"{path} has no image ids; expected one per line")
    if any(isinstance(id_, str) for id_ in of):
        return set(entries)
    for entry in entries:
        if not (entry.isdecimal() and len(entry) < 20):
            raise UserError(f"{path} has the line {entry[:40]!r}; expected an image id, an integer")
    return {int(entry) for entry in entries}


def _json_lists(values: Sequence[msgspec.Raw], ends: np.ndarray) -> Iterator[bytes]:
    """JSON values up to each of these ends, as JSON lists."""
    start = 0
    for end in ends.tolist():
        yield b"[" + b",".join(values[start:end]) + b"]"
        start = end


@dataclasses.dataclass(eq=False)
class CocoDataset(BoxDataset):
    """Images and annotations of a COCO file.

    Attributes:
      category_ids: the category id of each class, for results in COCO's format.
      image_ids: ``[images]``, int64 or text: the file's id of each image.
      unlabelled: the file has no annotations at all.
    """

    category_ids: tuple[Id, ...]
    image_ids: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    segmentations: pa.LargeBinaryArray | None  # per image: its objects' segmentations, as JSON
    unlabelled: bool = False
    keypoints: np.ndarray | None = None  # float32 [objects, k, 3], as in an `Example`
    keypoint_mirror: np.ndarray | None = None

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        example, span = self._example(index)
        example["image_id"] = self.image_ids[index].item()
        if self.unlabelled:
            return without_objects(example) | {"unlabelled": True}
        example |= {"crowd": self.crowd[span], "area": self.area[span]}
        if self.keypoints is not None:
            example["keypoints"] = turn_points(self.keypoints[span], example.get("orientation", 1))
            example["keypoint_mirror"] = self.keypoint_mirror
        if self.segmentations is not None:
            try:
                mask = instance_mask(self.segmentations[index].as_py(), *self.sizes[index].tolist())
            except DecodeError as error:
                raise BadImageError(example["id"], str(error)) from error
            example["instance_mask"] = turn_mask(mask, example.get("orientation", 1))
        return example

    def objects_with_keypoints(self) -> np.ndarray:
        if self.keypoints is None:
            return np.zeros((0, 3), np.int32)
        objects = np.flatnonzero(labelled(self.keypoints).any(1) & ~self.crowd)
        images = self.objects.rows()
        first = self.objects.ends - self.objects.counts()
        return np.stack([images, np.arange(len(images)) - first[images], self.objects.values], 1)[objects].astype(
            np.int32)


def instance_mask(segmentations: bytes, height: int, width: int) -> np.ndarray:
    """uint8 ``[height, width]``: k where the k-th object, counted from 1, is visible; 0 elsewhere.

    Args:
      segmentations: a JSON list of at most 255 of COCO's: polygons, run lengths (compressed or not), or null.

    Raises:
      DecodeError: one of them is none of these, or of another size.
    """
    mask = np.zeros((height, width), np.uint8, order="F")  # the order of run lengths
    for k, segmentation in enumerate(_PARTS.decode(segmentations), 1):
        try:
            inside = _inside(_SEGMENTATION.decode(segmentation), height, width)
        except Exception as error:
            raise DecodeError(f"the segmentation of object {k} cannot be drawn on {width} x {height} pixels "
                              f"({first_line(error)})") from error
        np.copyto(mask, np.uint8(k), where=inside)
    return np.ascontiguousarray(mask)


def _inside(segmentation: Segmentation, height: int, width: int) -> np.ndarray | bool:
    """bool ``[height, width]``, or False where it encloses nothing."""
    from hotcoco import mask as rle  # pycocotools crashes on damaged input, or leaves pixels undefined

    if isinstance(segmentation, RunLengths):
        if segmentation.size != (height, width):
            raise ValueError(f"its size is {segmentation.size[1]} x {segmentation.size[0]} pixels")
        runs = {"size": [height, width], "counts": segmentation.counts}
        if isinstance(segmentation.counts, list):
            runs = rle.frPyObjects(runs, height, width)
        inside = rle.decode(runs).view(np.bool_)  # raises for more pixels than there are, but not for fewer
        try:
            rle.area({**runs, "size": [height * width - 1, 1]})
        except ValueError:
            return inside
        raise ValueError("its runs end before the last pixel")
    if any(len(polygon) % 2 for polygon in segmentation or ()):
        raise ValueError("a polygon has an x without a y")
    # Four numbers are a line, which encloses nothing; pycocotools would read them as a box.
    polygons = [polygon for polygon in segmentation or () if len(polygon) >= 6]
    return rle.decode(rle.merge(rle.frPyObjects(polygons, height, width))).view(np.bool_) if polygons else False
