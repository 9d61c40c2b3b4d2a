"""Datasets in memory that several tests share, or that worker processes of the input import."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from big_vision_lite.data.source import Dataset, Example, Source

BAD_IMAGE = b"\xff\xd8 no more"


@dataclasses.dataclass(eq=False)
class NoiseDataset(Dataset):
    """Images of 12 x 12 pixels with random values."""

    images: int
    bad: tuple[int, ...] = ()
    classes: tuple[str, ...] = ("even", "odd")
    multi_label: bool = False
    fingerprint: str = "noise"

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Example:
        pixels = np.random.default_rng(index).integers(0, 256, (12, 12, 3), np.uint8)
        return {"id": f"number {index}", "image": BAD_IMAGE if index in self.bad else pixels,
                "labels": np.array([index % 2], np.int32)}


@dataclasses.dataclass(eq=False)
class SizedDataset(Dataset):
    """Images of given sizes; all pixels of an image are its index, and all of its mask are ``mask``."""

    sizes: list
    fingerprint: str = "sized"
    bad: tuple[int, ...] = ()
    classes: tuple[str, ...] = ("a", "b")
    multi_label: bool = True
    reads: int = 0
    mask: int = 1

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        self.reads += 1
        pixels = np.full((*self.sizes[index], 3), index, np.uint8)
        return {"id": str(index), "image": BAD_IMAGE if index in self.bad else pixels,
                "labels": np.zeros(1, np.int32), "class_mask": np.full(self.sizes[index], self.mask, np.uint8)}


@dataclasses.dataclass(frozen=True)
class InMemory(Source):
    """For ``Input`` only: the tests make their own datasets."""

    def open(self) -> NoiseDataset:
        return NoiseDataset(10)


def label_targets(example: Example) -> dict[str, np.ndarray]:
    return {"label": np.append(example["labels"], np.int32(-1))[:1]}


def size_targets(example: Example) -> dict[str, np.ndarray]:
    return {"size": example.get("size", np.zeros(2, np.int32))}


@dataclasses.dataclass(eq=False)
class Simulated(Dataset):
    """``length`` examples without images; class k has 1 / (k + 1) of the images of class 0."""

    length: int = 4000
    classes: tuple[str, ...] = tuple(f"class {i}" for i in range(40))
    multi_label: bool = True
    name: str = "simulated"

    @property
    def fingerprint(self):
        return f"{self.name}-{self.length}-{len(self.classes)}-{self.multi_label}"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        labels = drawn_labels(index, len(self.classes), 1 + (index % 3 if self.multi_label else 0))
        return {"id": f"{self.name}/{index}", "image": b"", "labels": labels, "boxes": np.zeros((1, 4), np.float32)}


@functools.cache
def drawn_labels(index, classes, count):
    chance = 1 / np.arange(1, classes + 1)
    labels = np.random.default_rng(index).choice(classes, count, False, chance / chance.sum())
    return np.sort(labels).astype(np.int32)


def contents(dataset):
    return {e["id"]: tuple(e["labels"].tolist()) for e in dataset.read(range(len(dataset)))}
