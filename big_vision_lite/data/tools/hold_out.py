"""Validation images for a folder that has only training and test images."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from big_vision_lite.data.curation.curated import Curated
from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.data.sources.files import scan
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.splits import spellings, standard_split
from big_vision_lite.errors import UserError, writing


def hold_out(root: Path, out: Path, images: int, seed: int = 0) -> dict[str, int]:
    """Write ``root/{train,test}/CLASS/*`` as ``out/{train,val,test}/CLASS/*``, with ``images`` of the training images
    in val: those of ``NestedSubset(images, seed=seed, stratified=True)``, a fixed choice by a keyed permutation that
    keeps the proportions of the classes. Files are linked (hard links), or copied to another disk; the names, bytes
    and times stay. Other folders than train are taken over as they are.

    Returns:
      The number of images per split of ``out``.

    Raises:
      UserError: ``root`` has no train folder or has validation images, ``out`` exists, or a class would lose all its
        training images.
    """
    if (existing := next((name for name in spellings("validation") if (root / name).is_dir()), None)) is not None:
        raise UserError(f"{str(root)!r} has validation images already, in {existing!r}; nothing to hold out")
    if out.exists():
        raise UserError(f"{str(out)!r} exists; name a new folder, or remove this one to write it again")
    train_folder = next((name for name in spellings("train") if (root / name).is_dir()), None)
    if train_folder is None:
        raise UserError(f"{str(root)!r} has no folder 'train'; of a folder that just has one folder per class, "
                        "ImageFolder holds out a tenth for validation and another for test by itself")
    dataset = ImageFolder(str(root), train_folder).open()
    held_out = NestedSubset(images, seed=seed, stratified=True).apply(Curated.of(dataset)).order.indices
    in_validation = np.zeros(len(dataset), np.bool_)
    in_validation[held_out] = True
    left = np.bincount(dataset.label_of[~in_validation], minlength=len(dataset.classes))
    if not left.all():
        raise UserError(f"{images:,} of {len(dataset):,} images held out leave class "
                        f"{dataset.classes[int(left.argmin())]!r} without training images; hold out fewer")
    counts = {"train": int(left.sum()), "val": images}
    with writing(repr(str(out)), "choose another folder or free some space"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as temporary:
            partial = Path(temporary) / out.name
            for index, held in enumerate(in_validation):
                id_ = dataset.labels(index)[0]
                _link(root / id_, partial / ("val" if held else "train") / id_.partition("/")[2])
            for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != train_folder):
                name = standard_split(folder.name) or folder.name
                counts[name] = 0
                for path, *_ in scan(str(folder)):
                    _link(folder / path, partial / name / path)
                    counts[name] += 1
            os.rename(partial, out)
    return counts


def _link(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), to)
    except OSError:  # another disk, or one without links
        shutil.copy2(file, to)
