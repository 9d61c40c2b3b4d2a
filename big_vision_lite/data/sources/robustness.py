"""Test sets for networks that know ImageNet's classes, in the layouts in which their authors publish them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from big_vision_lite.data.decode import DecodeError, decode
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Example
from big_vision_lite.data.sources.files import FileDataset, compact, files_identity, scan, text_at
from big_vision_lite.errors import BadImageError, UserError, nearest
from big_vision_lite.system.parse import read_json, read_text

BORDER = 2
"""Pixels that are cut off each side of ObjectNet's images, which have a red frame to mark them as test images."""
_VALIDATION_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.")


@dataclasses.dataclass(eq=False)
class RobustnessDataset(FileDataset):
    """Images with the classes that count as right. Their examples have no labels.

    Attributes:
      answers: row i: the right classes of image i, at least one.
      candidates: bool ``[classes]``: those that a network may choose from.
      groups: names of parts, such as folders.
      group_of: int32 ``[n]``: the part of each image.
      border: pixels to cut off each side.
    """

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    root: str
    names: pa.LargeBinaryArray
    answers: Ragged
    candidates: np.ndarray
    groups: tuple[str, ...]
    group_of: np.ndarray
    border: int = 0

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        return text_at(self.names, range(len(self))[index]), np.zeros(0, np.int32)

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        if self.border:
            try:
                pixels = decode(example["image"])
            except DecodeError as error:
                raise BadImageError(example["id"], str(error)) from error
            if min(pixels.shape[:2]) > 2 * self.border:
                example["image"] = np.ascontiguousarray(pixels[self.border:-self.border, self.border:-self.border])
        return example


def wordnet_folders(root: str, classes: Sequence[str]) -> RobustnessDataset:
    """One folder per class, named as the network's: ImageNet-A, ImageNet-R (Hendrycks et al. 2021) and ImageNet-Sketch
    (Wang et al. 2019). The network may choose from these classes only, as their authors have it.

    Raises:
      UserError: as all functions here: no such folder, no images, or a class that the network does not know.
    """
    number = {name: k for k, name in enumerate(classes)}

    def answers(path: str) -> Sequence[int]:
        folder = _first_folder(path, root)
        if folder not in number:
            raise UserError(f"{root!r} has the folder {folder!r}, which is none of the network's {len(classes)} classes"
                            f"{nearest(folder, classes)}; expected WordNet ids, such as n01440764. For weights from "
                            "elsewhere give them with bvl weights import --classes FILE")
        return [number[folder]]

    return _open(root, classes, answers, only_answers=True)


def numbered_folders(root: str, classes: Sequence[str]) -> RobustnessDataset:
    """Folders 0 to 999, numbers of the sorted WordNet ids: ImageNet-V2 (Recht et al. 2019)."""
    number_of = _by_number(classes)

    def answers(path: str) -> Sequence[int]:
        folder = _first_folder(path, root)
        if not folder.isdecimal() or int(folder) >= len(classes):
            raise UserError(f"{root!r} has the folder {folder!r}; expected numbers from 0 to {len(classes) - 1}, one "
                            "per class of the network")
        return [number_of[int(folder)]]

    return _open(root, classes, answers)


def reassessed(root: str, classes: Sequence[str]) -> RobustnessDataset:
    """ImageNet's validation images with the labels of Beyer et al. 2020, "Are we done with ImageNet?": any number per
    image. Expects ILSVRC2012_val_*.JPEG in any folders below the root, and their real.json beside them."""
    number_of = _by_number(classes)
    file = Path(os.path.expanduser(root)) / "real.json"
    labels = read_json(file, list[list[int]], "expected the list of labels per image that is published as real.json")

    def answers(path: str) -> Sequence[int]:
        match = _VALIDATION_NUMBER.search(path)
        image = int(match[1]) if match else 0
        if not 1 <= image <= len(labels):
            raise UserError(f"{root!r} has the image {path!r}; expected ILSVRC2012_val_00000001.JPEG to "
                            f"ILSVRC2012_val_{len(labels):08}.JPEG, as {str(file)!r} has labels")
        wrong = [label for label in labels[image - 1] if not 0 <= label < len(classes)]
        if wrong:
            raise UserError(f"{str(file)!r}: image {image} has the label {wrong[0]}; expected 0 to {len(classes) - 1}, "
                            "the network's classes")
        return [number_of[label] for label in labels[image - 1]]

    return _open(root, classes, answers, grouped=False)


def objectnet(root: str, classes: Sequence[str]) -> RobustnessDataset:
    """ObjectNet (Barbu et al. 2019): the folders below images/ that correspond to ImageNet's classes, each to one or
    more of them, by the files in mappings/. The network may choose from all of its classes."""
    base = Path(os.path.expanduser(root))
    mappings = base / "mappings"
    advice = "expected mappings/ and images/ as ObjectNet's archive has them"
    label_of = read_json(mappings / "folder_to_objectnet_label.json", dict[str, str], advice)
    names_of = read_json(mappings / "objectnet_to_imagenet_1k.json", dict[str, str], advice)
    line_of = read_json(mappings / "pytorch_to_imagenet_2012_id.json", dict[str, int], advice)
    lines = [line.strip() for line in read_text(mappings / "imagenet_to_label_2012_v2", advice).splitlines()]
    number_of, class_of = _by_number(classes), dict[str, int]()
    for number, line in line_of.items():
        if not (number.isdecimal() and int(number) < len(classes) and 0 <= line < len(lines)):
            raise UserError(f"{str(mappings)!r} maps class {number} to line {line}; expected 0 to {len(classes) - 1}, "
                            f"the network's classes, and 0 to {len(lines) - 1}")
        class_of[lines[line]] = number_of[int(number)]
    answers_of = dict[str, list[int]]()
    for folder, label in label_of.items():
        names = names_of[label].split("; ") if label in names_of else []
        if unknown := [name for name in names if name not in class_of]:
            raise UserError(f"{str(mappings)!r} has no class of ImageNet named {unknown[0]!r}, which it gives for "
                            f"{label!r}{nearest(unknown[0], class_of)}")
        answers_of[folder] = [class_of[name] for name in names]
    images = str(base / "images")

    def answers(path: str) -> Sequence[int]:
        folder = _first_folder(path, images)
        if folder not in answers_of:
            raise UserError(f"{images!r} has the folder {folder!r}, which folder_to_objectnet_label.json does not "
                            f"name{nearest(folder, answers_of)}")
        return answers_of[folder]

    return _open(images, classes, answers, border=BORDER)


KINDS: dict[str, Callable[[str, Sequence[str]], RobustnessDataset]] = {
    "imagenet-a": wordnet_folders, "imagenet-r": wordnet_folders, "imagenet-sketch": wordnet_folders,
    "imagenet-v2": numbered_folders, "imagenet-real": reassessed, "objectnet": objectnet}
"""How each set is opened: by its folder and the network's classes."""


def _by_number(classes: Sequence[str]) -> list[int]:
    """The network's class of each number: numbers are those of the sorted WordNet ids, unless the classes are numbers
    themselves."""
    numbers = [str(k) for k in range(len(classes))]
    names = numbers if set(classes) == set(numbers) else sorted(classes)
    index = {name: k for k, name in enumerate(classes)}
    return [index[name] for name in names]


def _first_folder(path: str, root: str) -> str:
    folder, slash, _ = path.partition("/")
    if not slash:
        raise UserError(f"{root!r} has the image {path!r} beside its folders; expected one folder per class")
    return folder


def _open(root: str, classes: Sequence[str], answers: Callable[[str], Sequence[int]], only_answers: bool = False,
          grouped: bool = True, border: int = 0) -> RobustnessDataset:
    """The images that have answers. ``only_answers``: no other class is a candidate."""
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise UserError(f"there is no folder {root!r}; expected the images of a robustness set")
    files = sorted(scan(root))
    found = [(file, right) for file in files if (right := answers(file[0]))]
    if not found:
        raise UserError(f"none of the {len(files):,} images in {root!r} shows a class of the network; expected its "
                        "folders as they are published")
    paths = [path for (path, *_), _ in found]
    right = Ragged.of(np.asarray(sorted(set(one)), np.int32) for _, one in found)
    candidates = np.ones(len(classes), np.bool_)
    if only_answers:
        candidates[:] = False
        candidates[right.values] = True
    parts = [path.partition("/")[0] if grouped else "" for path in paths]
    groups, group_of = np.unique(parts, return_inverse=True)
    identity = files_identity(root, paths, np.array([file[1:] for file, _ in found], np.int64), "mtime")
    return RobustnessDataset(tuple(classes), True, f"robustness-{identity}", root, compact(paths), right, candidates,
                             tuple(groups.tolist()) if grouped else (), group_of.astype(np.int32), border)
