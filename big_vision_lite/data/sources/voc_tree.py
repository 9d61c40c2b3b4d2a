"""Detection and segmentation data in Pascal VOC's format: Annotations/, JPEGImages/, ImageSets/."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from xml.etree import ElementTree

import msgspec
import numpy as np
from msgspec import Meta

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.masks import decode_mask
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Source
from big_vision_lite.data.sources.box_records import BoxDataset, PixelPosition, clip_boxes, turn_mask
from big_vision_lite.data.sources.files import (
    Fingerprint,
    by_stem,
    check_classes,
    check_files,
    compact,
    is_image,
    read_file,
    read_lines,
)
from big_vision_lite.errors import BadImageError, UserError, nearest, reading
from big_vision_lite.system.parse import convert, read_bytes

VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
MASK_FOLDERS = {"class": "SegmentationClass", "class_aug": "SegmentationClassAug"}
MAX_XML_BYTES = 100 << 20


class VocBox(msgspec.Struct):
    xmin: PixelPosition
    ymin: PixelPosition
    xmax: PixelPosition
    ymax: PixelPosition


class VocObject(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1, max_length=1000)]
    bndbox: VocBox
    difficult: Literal["0", "1"] = "0"


class VocSize(msgspec.Struct):
    height: Annotated[int, Meta(ge=0, lt=2**31)] = 0  # 0: not known
    width: Annotated[int, Meta(ge=0, lt=2**31)] = 0


class VocAnnotation(msgspec.Struct):
    """An XML file, as far as it is used."""

    size: VocSize
    objects: list[VocObject] = msgspec.field(name="object")


@dataclasses.dataclass(frozen=True)
class VocTree(Source):
    """Images with boxes from XML files.

    Examples also have ``difficult``. Labels are those of all objects, including difficult ones. VOC counts pixels from
    1, both ends included, so the edges of a box are (xmin - 1, xmax). Boxes are clipped to their image and dropped if
    empty; both are counted. Sizes in XML files must be those of the images, see `BoxDataset`. The id of an example is
    the file name of its image.
    """

    root: str = ""
    """Folder with Annotations/ and JPEGImages/, such as VOCdevkit/VOC2012."""
    split: str = "train"
    """The images listed in ImageSets/Main/SPLIT.txt, or in ImageSets/Segmentation/ with ``masks``. In the list of one
    class, such as cat_train, images marked -1 are left out. ``all``: every annotated image."""
    classes: tuple[str, ...] | None = None
    """Class names in order. None: VOC's 20 if the tree has no others, else its names, sorted."""
    masks: Literal["none", "class", "class_aug"] = "none"
    """Load ``class_mask``, uint16 ``[height, width]``, from SegmentationClass/ or SegmentationClassAug/: 0 background,
    c + 1 for class c, 255 void (ignored)."""
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`."""

    precedence: ClassVar[int] = 2

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"root": str(path)} if (path / "Annotations").is_dir() else None

    def open(self) -> VocDataset:
        """Reads the XML files, and the headers of images whose XML has no size.

        Raises:
          UserError: a missing folder, split, image or mask, a damaged XML file, a class that is not in ``classes``, or
            all boxes are empty.
        """
        root = Path(os.path.expanduser(self.root))
        for folder in ("Annotations", "JPEGImages"):
            if not (root / folder).is_dir():
                raise UserError(f"{self.root!r} has no folder {folder!r}; expected a VOC tree: Annotations, "
                                "JPEGImages, ImageSets/Main")
        files = by_stem(filter(is_image, os.listdir(root / "JPEGImages")), str(root / "JPEGImages"))
        names = self._names(root, files)
        if missing := [name for name in names if name not in files]:
            raise UserError(f"{self.root}/JPEGImages lacks {len(missing):,} images of split {self.split!r}, such as "
                            f"{missing[0]!r}; copy them there")
        mask_folder = self._mask_folder(root, names)
        digest, annotations = hashlib.blake2b(digest_size=8), []
        for name in names:
            annotation = _annotation(root / "Annotations" / f"{name}.xml", root / "JPEGImages" / files[name])
            digest.update(repr((files[name], annotation)).encode(errors="surrogateescape"))
            annotations.append(annotation)
        class_names = {object_.name for annotation in annotations for object_ in annotation.objects}
        classes = _classes(root, class_names, set(names)) if self.classes is None else self.classes
        check_classes(classes, f"{self.root}/Annotations" if self.classes is None else "VocTree.classes")
        if self.masks != "none" and self.classes is None and classes != VOC_CLASSES:
            other = min(set(classes) - set(VOC_CLASSES))
            raise UserError(f"{self.root!r} has classes other than VOC's, such as {other!r}; set VocTree.classes in "
                            "the order of the values in its masks")
        label_of = {name: i for i, name in enumerate(classes)}
        for name, annotation in zip(names, annotations, strict=True):
            for object_ in annotation.objects:
                if object_.name not in label_of:
                    raise UserError(f"{self.root}/Annotations/{name}.xml has an object of class {object_.name!r}"
                                    + nearest(object_.name, classes))
        digest.update(repr((classes, self.masks)).encode())
        identity = check_files(str(root / "JPEGImages"), ((files[name], self.root) for name in names), self.fingerprint)
        if mask_folder is not None:
            identity += "-" + check_files(mask_folder, ((f"{name}.png", self.root) for name in names), self.fingerprint)
        sizes = np.array([(annotation.size.height, annotation.size.width) for annotation in annotations], np.int32)
        objects = [object_ for annotation in annotations for object_ in annotation.objects]
        rows = np.repeat(np.arange(len(names)), [len(annotation.objects) for annotation in annotations])
        corners = np.array([(box.xmin - 1, box.ymin - 1, box.xmax, box.ymax) for box in (o.bndbox for o in objects)],
                           np.float64).reshape(-1, 4)
        boxes, valid, count = clip_boxes(corners, sizes[rows], f"split {self.split!r} of {self.root}")
        objects = [objects[i] for i in valid]
        return VocDataset(
            classes=tuple(classes),
            multi_label=True,
            fingerprint=f"voc-{digest.hexdigest()}-{identity}",
            count=count,
            root=str(root / "JPEGImages"),
            mask_folder=mask_folder,
            names=compact(files[name] for name in names),
            sizes=sizes,
            objects=Ragged(np.cumsum(np.bincount(rows[valid], minlength=len(names))),
                           np.array([label_of[object_.name] for object_ in objects], np.int32)),
            boxes=boxes,
            difficult=np.array([object_.difficult == "1" for object_ in objects], np.bool_),
        )

    def _names(self, root: Path, files: dict[str, str]) -> list[str]:
        """The images of the split, without extension. Raises: UserError."""
        if self.split == "all":
            names = [file.stem for file in _xml_files(root)]
        else:
            sets = root / "ImageSets" / ("Main" if self.masks == "none" else "Segmentation")
            path = sets / f"{self.split}.txt"
            if not path.is_file():
                splits = [p.stem for p in sorted(sets.glob("*.txt")) if "_" not in p.stem]
                raise UserError(f"{self.root!r} has no split {self.split!r}: there is no ImageSets/{sets.name}/"
                                + path.name + nearest(self.split, splits))
            names = []
            for line in read_lines(path, "the list of images", "one image per line, in UTF-8"):
                flagged = None if line in files else re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
                if flagged is None or flagged[2] != "-1":
                    names.append(flagged[1] if flagged else line)
        if not names:
            raise UserError(f"split {self.split!r} of {self.root!r} is empty; choose another")
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise UserError(f"split {self.split!r} of {self.root!r} lists {twice!r} twice; ids must be unique")
        return names

    def _mask_folder(self, root: Path, names: list[str]) -> str | None:
        """Raises: UserError when an image has no mask."""
        if self.masks == "none":
            return None
        folder = root / MASK_FOLDERS[self.masks]
        files = set(os.listdir(folder)) if folder.is_dir() else set()
        if missing := [name for name in names if f"{name}.png" not in files]:
            raise UserError(f"{len(missing):,} masks of split {self.split!r} are missing, such as "
                            f"{f'{folder}/{missing[0]}.png'!r}; choose another split or other VocTree.masks")
        return str(folder)


def _annotation(path: Path, image: Path) -> VocAnnotation:
    """An XML file, with the size of its image. Raises: UserError."""
    root = _root(path)
    objects = [_texts(element, VocObject) | {"bndbox": _texts(element.find("bndbox"), VocBox)}
               for element in root.iter("object")]
    annotation = convert({"size": _texts(root.find("size"), VocSize), "object": objects}, VocAnnotation, path,
                         "expected VOC's annotations", strict=False)
    if annotation.objects:
        check_classes(sorted({object_.name for object_ in annotation.objects}), str(path))
    if not (annotation.size.height and annotation.size.width):
        try:
            annotation.size = VocSize(*image_size(read_file(str(image), image.name)))
        except (DecodeError, BadImageError) as error:
            raise UserError(f"{path} has no <size>, and the image has no readable header: {error}") from None
    return annotation


def _texts(element: ElementTree.Element | None, kind: type[msgspec.Struct]) -> dict[str, str]:
    """The texts of the fields of ``kind`` within an element, without empty ones."""
    if element is None:
        return {}
    return {tag: text for tag in kind.__struct_fields__ if (text := (element.findtext(tag) or "").strip())}


def _xml_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / "Annotations").glob("*.xml") if not path.name.startswith("."))


def _root(path: Path) -> ElementTree.Element:
    """Raises: UserError."""
    data = read_bytes(path, "each image of a split needs its XML", MAX_XML_BYTES)
    with reading(path, "expected VOC's XML; it may be cut off, or in an encoding other than UTF-8"):
        root = ElementTree.fromstring(data)
    if root.tag != "annotation":
        raise UserError(f"cannot read {path}: it holds <{root.tag}>; expected VOC's <annotation>")
    return root


def _classes(root: Path, known: set[str], read: set[str]) -> tuple[str, ...]:
    """VOC's classes, or all names in the tree, so that every split has the same.

    Args:
      known: the names in the XML files that were ``read``.
    """
    names = set(known)
    for path in _xml_files(root):
        if path.stem not in read:
            names |= {(element.findtext("name") or "").strip() for element in _root(path).iter("object")}
    names -= {""}
    if not names:
        raise UserError(f"{root}/Annotations has no objects; set VocTree.classes")
    return VOC_CLASSES if names <= set(VOC_CLASSES) else tuple(sorted(names))


@dataclasses.dataclass(eq=False)
class VocDataset(BoxDataset):
    """Images and annotations of a split."""

    mask_folder: str | None
    difficult: np.ndarray

    def __getitem__(self, index: int) -> Example:
        example, span = self._example(range(len(self))[index])
        example["difficult"] = self.difficult[span]
        if self.mask_folder is not None:
            id_ = example["id"]
            data = read_file(f"{self.mask_folder}/{id_.rpartition('.')[0]}.png", id_)
            mask = decode_mask(data, id_).astype(np.uint16)
            example["class_mask"] = turn_mask(mask, example.get("orientation", 1))
        return example
