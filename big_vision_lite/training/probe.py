"""Probes: how good a network's frozen features are for classification."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Dataset
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.probes import FeatureSet, few_shot, linear_probe, nearest_neighbours
from big_vision_lite.training.trees import Tree

Kind = Literal["few_shot", "neighbours", "linear"]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Classifiers on frozen features. Both inputs need one label per image; each image is seen once."""

    train: Input
    """Images to take shots from, to search for neighbours, to train the linear probe on; usually seen through an
    evaluation's transform."""
    test: Input
    kinds: tuple[Kind, ...] = ("few_shot",)
    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Training images per class. The images of fewer shots are among those of more."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the choice of shots."""
    neighbours: int = 20

    def __post_init__(self) -> None:
        right = {"kinds": self.kinds, "shots": self.shots and min(self.shots) > 0,
                 "seeds": self.seeds and min(self.seeds) >= 0, "neighbours": self.neighbours > 0}
        wrong = [f"{name}={getattr(self, name)}" for name, is_right in right.items() if not is_right]
        if wrong:
            raise UserError(f"Probe: {', '.join(wrong)}; expected some kinds, shots and seeds, numbers above 0, and "
                            "seeds of at least 0")

    def run(self, trainer: Any, params: Tree, batch_stats: Tree) -> dict[str, float]:
        """Accuracies in [0, 1]: "few_shot_5/seed_0" and so on, "few_shot_5" their median, "neighbours_20", "linear".

        Args:
          trainer: a `Trainer`, whose network is probed with these parameters and batch statistics.

        Raises:
          UserError: several labels per image, different classes in train and test, or too few images.
        """
        train, test = self.train.open(), self.test.open()
        for name, dataset in (("train", train), ("test", test)):
            if dataset.multi_label:
                raise UserError(f"probe: its {name} images have any number of labels; probes need one per image")
        if train.classes != test.classes:
            raise UserError(f"probe: train has {len(train.classes)} classes and test {len(test.classes)}, or in "
                            "another order; they must be equal")
        train_set, test_set = (features(trainer, params, batch_stats, inputs, dataset)
                               for inputs, dataset in ((self.train, train), (self.test, test)))
        results = {}
        if "few_shot" in self.kinds:
            for shots, accuracies in few_shot(train_set, test_set, self.shots, self.seeds).items():
                results |= {f"few_shot_{shots}/seed_{seed}": accuracy
                            for seed, accuracy in zip(self.seeds, accuracies, strict=True)}
                results[f"few_shot_{shots}"] = float(np.median(accuracies))
        if "neighbours" in self.kinds:
            results[f"neighbours_{self.neighbours}"] = nearest_neighbours(train_set, test_set, self.neighbours)
        if "linear" in self.kinds:
            results["linear"] = linear_probe(train_set, test_set)
        return results


def features(trainer: Any, params: Tree, batch_stats: Tree, inputs: Input, dataset: Dataset) -> FeatureSet:
    """The spatial mean of the backbone's last stage for each readable image, in order."""
    values, labels = [], []
    inputs = dataclasses.replace(inputs, transform=inputs.transform.single_view)
    for batch in trainer.batches(inputs, dataset, seed=None, targets=_first_label):
        images = trainer.to_devices({"image": batch["image"]})["image"]
        batch, vectors = trainer.to_host(batch, trainer.feature_step(params, batch_stats, images))
        values.append(vectors[batch["mask"]])
        labels.append(batch["label"][batch["mask"]])
    return FeatureSet(np.concatenate(values), np.concatenate(labels), dataset.classes)


def _first_label(example: dict) -> dict[str, np.ndarray]:
    return {"label": np.array(example["labels"][0] if len(example["labels"]) else -1, np.int32)}

