"""Detection and segmentation data as Pascal VOC stores it: Annotations/, JPEGImages/, ImageSets/."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from collections import Counter
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from big_vision_lite.data.boxes import BoxCount, BoxRecords, fitted
from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.files import Strings, check_classes, read_file
from big_vision_lite.data.image_folder import EXTENSIONS
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Source
from big_vision_lite.errors import BadImageError, UserError, nearest

VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
MASK_FOLDERS = {"class": "SegmentationClass", "class_aug": "SegmentationClassAug"}


@dataclasses.dataclass(frozen=True)
class VocTree(Source):
    """Images with boxes from a tree of xml files.

    Beside what an `Example` has: ``difficult`` bool ``[n]``. Labels are those of all objects, difficult ones too. VOC's
    boxes count pixels from 1, both ends included; (xmin - 1, xmax) are the edges here. Boxes are clipped to their
    image; one without area is dropped, and both are counted. The id of an example is the file name of its image.
    """

    root: str = ""
    """Folder with Annotations/ and JPEGImages/; such as VOCdevkit/VOC2012."""
    split: str = "train"
    """The images named in ImageSets/Main/SPLIT.txt, or in ImageSets/Segmentation/ with ``masks``; in a list of one
    class, such as cat_train, without those that it marks -1. ``all``: every annotated image."""
    classes: tuple[str, ...] | None = None
    """Class names in order. None: VOC's 20 when the tree has no other names, else its names, sorted."""
    masks: Literal["none", "class", "class_aug"] = "none"
    """Give ``class_mask``, uint16 ``[height, width]``, from SegmentationClass/ or SegmentationClassAug/: 0 background,
    k the k-th class counted from 1, 255 void, which is no class and counts for nothing."""

    def open(self) -> VocRecords:
        """Reads the xml files; of images only the size of those whose xml lacks it.

        Raises:
          UserError: no such folder, split, image or mask, a damaged xml file, or a class that is not among ``classes``.
        """
        root = Path(self.root).expanduser()
        for folder in ("Annotations", "JPEGImages"):
            if not (root / folder).is_dir():
                raise UserError(f"{self.root!r} has no folder {folder!r}; expected a VOC tree: Annotations, "
                                "JPEGImages, ImageSets/Main")
        listed = {file.rpartition(".")[0]: file for file in sorted(os.listdir(root / "JPEGImages"))
                  if file.rpartition(".")[2].lower() in EXTENSIONS}
        names = self._names(root, listed)
        if missing := [name for name in names if name not in listed]:
            raise UserError(f"{self.root}/JPEGImages has no image {missing[0]!r} of split {self.split!r} "
                            f"({len(missing):,} such)")
        mask_folder = self._mask_folder(root, names)
        digest, count, parsed = hashlib.blake2b(digest_size=8), BoxCount(), []
        for name in names:
            annotation = _parse(root / "Annotations" / f"{name}.xml", root / "JPEGImages" / listed[name])
            digest.update(repr((listed[name], annotation)).encode(errors="surrogateescape"))
            parsed.append(annotation)
        if self.classes is not None:
            check_classes(self.classes, "VocTree.classes")
        here = {name for _, objects in parsed for name, _, _ in objects}
        classes = self.classes or _classes(root, here, set(names))
        if self.masks != "none" and self.classes is None and classes != VOC_CLASSES:
            other = min(set(classes) - set(VOC_CLASSES))
            raise UserError(f"{self.root!r} has classes that VOC has not, such as {other!r}; give VocTree.classes in "
                            "the order of the values in its masks")
        number = {name: i for i, name in enumerate(classes)}
        digest.update(repr((classes, self.masks)).encode())
        boxes, kept = [], []
        for name, (size, objects) in zip(names, parsed, strict=True):
            for label, _, _ in objects:
                if label not in number:
                    raise UserError(f"{self.root}/Annotations/{name}.xml has an object of class {label!r}"
                                    + nearest(label, classes))
            yxyx = np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4)
            there = fitted(yxyx, *size, count)
            boxes.append(there[0])
            kept.append([objects[i] for i in there[1]])
        return VocRecords(
            classes=tuple(classes),
            multi_label=True,
            fingerprint=f"voc-{digest.hexdigest()}",
            count=count,
            root=str(root / "JPEGImages"),
            mask_folder=mask_folder,
            names=Strings.of(listed[name] for name in names),
            sizes=np.array([size for size, _ in parsed], np.int32),
            objects=Ragged(np.cumsum([len(found) for found in kept], dtype=np.int64),
                           np.array([number[label] for found in kept for label, _, _ in found], np.int32)),
            boxes=np.concatenate(boxes),
            difficult=np.array([difficult for found in kept for _, _, difficult in found], np.bool_),
        )

    def _names(self, root: Path, listed: dict[str, str]) -> list[str]:
        """The images of the split, by name without extension."""
        if self.split == "all":
            names = [file.stem for file in _xml_files(root)]
        else:
            sets = root / "ImageSets" / ("Main" if self.masks == "none" else "Segmentation")
            path = sets / f"{self.split}.txt"
            if not path.is_file():
                splits = [p.stem for p in sorted(sets.glob("*.txt")) if "_" not in p.stem]
                raise UserError(f"{self.root!r} has no split {self.split!r}: there is no ImageSets/{sets.name}/"
                                + path.name + nearest(self.split, splits))
            try:
                lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read {path}: {error}; expected one image a line, in UTF-8") from None
            names = []
            for line in filter(None, lines):
                flagged = None if line in listed else re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
                if flagged is None or flagged[2] != "-1":
                    names.append(flagged[1] if flagged else line)
        if not names:
            raise UserError(f"split {self.split!r} of {self.root!r} names no image; choose another")
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise UserError(f"split {self.split!r} of {self.root!r} names {twice!r} twice; ids must differ")
        return names

    def _mask_folder(self, root: Path, names: list[str]) -> str | None:
        """Raises: UserError when an image has no mask."""
        if self.masks == "none":
            return None
        folder = root / MASK_FOLDERS[self.masks]
        there = set(os.listdir(folder)) if folder.is_dir() else set()
        if missing := [name for name in names if f"{name}.png" not in there]:
            raise UserError(f"there is no mask {f'{folder}/{missing[0]}.png'!r} of split {self.split!r} "
                            f"({len(missing):,} such); choose another split or other VocTree.masks")
        return str(folder)


def _parse(path: Path, image: Path) -> tuple[tuple[int, int], list[tuple[str, tuple, bool]]]:
    """((height, width), [(class, (ymin, xmin, ymax, xmax) in pixels, difficult)]). Raises: UserError."""
    tree = _tree(path)
    try:
        height, width = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (ValueError, OverflowError):
        height = width = 0
    if not (height > 0 and width > 0):
        try:
            height, width = image_size(read_file(str(image), image.name))
        except (DecodeError, BadImageError) as error:
            raise UserError(f"{path} has no <size>, and the image has none either: {error}") from None
    objects = []
    for found in tree.iter("object"):
        try:
            sides = [float(found.findtext(f"bndbox/{side}")) for side in ("ymin", "xmin", "ymax", "xmax")]
            label = (found.findtext("name") or "").strip()
            if not label:
                raise ValueError
        except (TypeError, ValueError):
            raise UserError(f"{path} has an object without a name or without four numbers in bndbox") from None
        box = (sides[0] - 1, sides[1] - 1, sides[2], sides[3])
        objects.append((label, box, (found.findtext("difficult") or "0").strip() == "1"))
    return (height, width), objects


def _xml_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / "Annotations").glob("*.xml") if not path.name.startswith("."))


def _tree(path: Path) -> ElementTree.ElementTree:
    """Raises: UserError."""
    try:
        return ElementTree.parse(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; each image of a split needs its xml") from None
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML ({error}); it may have been cut") from None


def _classes(root: Path, here: set[str], read: set[str]) -> tuple[str, ...]:
    """VOC's own, or the names in all of the tree, so that every split has the same.

    Args:
      here: the names in those xml files that were ``read``.
    """
    names = set(here)
    for path in _xml_files(root):
        if path.stem not in read:
            names |= {(found.findtext("name") or "").strip() for found in _tree(path).iter("object")}
    names -= {""}
    if not names:
        raise UserError(f"{root}/Annotations names no object; give the classes as VocTree.classes")
    return VOC_CLASSES if names <= set(VOC_CLASSES) else tuple(sorted(names))


@dataclasses.dataclass(eq=False)
class VocRecords(BoxRecords):
    """The annotations of a split."""

    mask_folder: str | None
    difficult: np.ndarray

    def __getitem__(self, index: int) -> Example:
        example, here = self._example(range(len(self))[index])
        example["difficult"] = self.difficult[here]
        if self.mask_folder is not None:
            id_ = example["id"]
            example["class_mask"] = _class_mask(f"{self.mask_folder}/{id_.rpartition('.')[0]}.png", id_)
        return example


def _class_mask(path: str, id_: str) -> np.ndarray:
    """uint16 ``[height, width]``: the indices of a PNG with a palette, or its grey values. Raises: BadImageError."""
    try:
        with Image.open(io.BytesIO(read_file(path, id_))) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"expected a palette or 8-bit grey, not {image.mode}")
            return np.asarray(image).astype(np.uint16)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImageError(id_, f"its mask {path}: {error}") from error
