"""Detection and segmentation data in Pascal VOC's format: Annotations/, JPEGImages/, ImageSets/."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Literal
from xml.etree import ElementTree

import numpy as np

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.masks import decode_mask
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example, Source
from big_vision_lite.data.sources.box_records import BoxCount, BoxDataset, clip_boxes
from big_vision_lite.data.sources.files import check_classes, compact, is_image, read_file, read_lines
from big_vision_lite.errors import BadImageError, UserError, nearest

VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
MASK_FOLDERS = {"class": "SegmentationClass", "class_aug": "SegmentationClassAug"}


@dataclasses.dataclass(frozen=True)
class VocTree(Source):
    """Images with boxes from XML files.

    Examples also have ``difficult``. Labels are those of all objects, including difficult ones. VOC counts pixels from
    1, both ends included, so the edges of a box are (xmin - 1, xmax). Boxes are clipped to their image and dropped if
    empty; both are counted. The id of an example is the file name of its image.
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

    precedence: ClassVar[int] = 2

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"root": str(path)} if (path / "Annotations").is_dir() else None

    def open(self) -> VocDataset:
        """Reads the XML files, and the headers of images whose XML has no size.

        Raises:
          UserError: a missing folder, split, image or mask, a damaged XML file, or a class that is not in ``classes``.
        """
        root = Path(self.root).expanduser()
        for folder in ("Annotations", "JPEGImages"):
            if not (root / folder).is_dir():
                raise UserError(f"{self.root!r} has no folder {folder!r}; expected a VOC tree: Annotations, "
                                "JPEGImages, ImageSets/Main")
        files = {file.rpartition(".")[0]: file for file in sorted(os.listdir(root / "JPEGImages")) if is_image(file)}
        names = self._names(root, files)
        if missing := [name for name in names if name not in files]:
            raise UserError(f"{self.root}/JPEGImages lacks {len(missing):,} images of split {self.split!r}, such as "
                            f"{missing[0]!r}; copy them there")
        mask_folder = self._mask_folder(root, names)
        digest, count, parsed = hashlib.blake2b(digest_size=8), BoxCount(), []
        for name in names:
            annotation = _parse(root / "Annotations" / f"{name}.xml", root / "JPEGImages" / files[name])
            digest.update(repr((files[name], annotation)).encode(errors="surrogateescape"))
            parsed.append(annotation)
        if self.classes is not None:
            check_classes(self.classes, "VocTree.classes")
        class_names = {name for _, objects in parsed for name, _, _ in objects}
        classes = self.classes or _classes(root, class_names, set(names))
        if self.masks != "none" and self.classes is None and classes != VOC_CLASSES:
            other = min(set(classes) - set(VOC_CLASSES))
            raise UserError(f"{self.root!r} has classes other than VOC's, such as {other!r}; set VocTree.classes in "
                            "the order of the values in its masks")
        label_of = {name: i for i, name in enumerate(classes)}
        digest.update(repr((classes, self.masks)).encode())
        boxes, valid_objects = [], []
        for name, (size, objects) in zip(names, parsed, strict=True):
            for label, _, _ in objects:
                if label not in label_of:
                    raise UserError(f"{self.root}/Annotations/{name}.xml has an object of class {label!r}"
                                    + nearest(label, classes))
            corners = np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4)
            clipped, valid = clip_boxes(corners, *size, count)
            boxes.append(clipped)
            valid_objects.append([objects[i] for i in valid])
        return VocDataset(
            classes=tuple(classes),
            multi_label=True,
            fingerprint=f"voc-{digest.hexdigest()}",
            count=count,
            root=str(root / "JPEGImages"),
            mask_folder=mask_folder,
            names=compact(files[name] for name in names),
            sizes=np.array([size for size, _ in parsed], np.int32),
            objects=Ragged.of([label_of[label] for label, _, _ in row] for row in valid_objects),
            boxes=np.concatenate(boxes),
            difficult=np.array([difficult for row in valid_objects for _, _, difficult in row], np.bool_),
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


def _parse(path: Path, image: Path) -> tuple[tuple[int, int], list[tuple[str, tuple, bool]]]:
    """((height, width), [(class, (x1, y1, x2, y2) in pixels, difficult)]). Raises: UserError."""
    tree = _tree(path)
    try:
        height, width = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (ValueError, OverflowError):
        height = width = 0
    if not (height > 0 and width > 0):
        try:
            height, width = image_size(read_file(str(image), image.name))
        except (DecodeError, BadImageError) as error:
            raise UserError(f"{path} has no <size>, and the image has no readable header: {error}") from None
    objects = []
    for element in tree.iter("object"):
        try:
            sides = [float(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            label = (element.findtext("name") or "").strip()
            if not label:
                raise ValueError
        except (TypeError, ValueError):
            raise UserError(f"{path} has an object without a name or without four numbers in bndbox") from None
        box = (sides[0] - 1, sides[1] - 1, sides[2], sides[3])
        objects.append((label, box, (element.findtext("difficult") or "0").strip() == "1"))
    return (height, width), objects


def _xml_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / "Annotations").glob("*.xml") if not path.name.startswith("."))


def _tree(path: Path) -> ElementTree.ElementTree:
    """Raises: UserError."""
    try:
        return ElementTree.parse(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; each image of a split needs its XML") from None
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML ({error}); it may be truncated") from None


def _classes(root: Path, known: set[str], read: set[str]) -> tuple[str, ...]:
    """VOC's classes, or all names in the tree, so that every split has the same.

    Args:
      known: the names in the XML files that were ``read``.
    """
    names = set(known)
    for path in _xml_files(root):
        if path.stem not in read:
            names |= {(element.findtext("name") or "").strip() for element in _tree(path).iter("object")}
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
            example["class_mask"] = decode_mask(data, id_).astype(np.uint16)
        return example
