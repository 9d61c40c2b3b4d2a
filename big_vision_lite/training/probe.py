"""Probes of a network's frozen features: images to arrays, arrays to accuracies."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Records
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.probes import Features, few_shot, linear_probe, nearest_neighbours
from big_vision_lite.remote import place
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.step import Tree, merge

Kind = Literal["few_shot", "neighbours", "linear"]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What frozen features are asked. Both inputs need one label an image; each image is seen once."""

    train: Input
    """Images from which shots, neighbours and the linear probe are taken; usually with an evaluation's transform."""
    test: Input
    kinds: tuple[Kind, ...] = ("few_shot",)
    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Training images a class; fewer are among more."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Choices of shots."""
    neighbours: int = 20

    def run(self, job: Any, params: Tree, stats: Tree) -> dict[str, float]:
        """Accuracies in [0, 1]: "few_shot_5/seed_0" and so on, "few_shot_5" their median, "neighbours_20", "linear".

        Args:
          job: a `Job`, whose network is probed with these parameters and statistics.

        Raises:
          UserError: several labels an image, other classes in train and test, or too few images.
        """
        train, test = self.train.open(), self.test.open()
        for name, records in (("train", train), ("test", test)):
            if records.multi_label:
                raise UserError(f"probe: its {name} images have any number of labels; probes need one an image")
        if train.classes != test.classes:
            raise UserError(f"probe: train has {len(train.classes)} classes and test {len(test.classes)}, or in "
                            "another order; they must be equal")
        here, there = (features(job, params, stats, inputs, records)
                       for inputs, records in ((self.train, train), (self.test, test)))
        results = {}
        if "few_shot" in self.kinds:
            for shots, found in few_shot(here, there, self.shots, self.seeds).items():
                results |= {f"few_shot_{shots}/seed_{seed}": value for seed, value in
                            zip(self.seeds, found, strict=True)}
                results[f"few_shot_{shots}"] = float(np.median(found))
        if "neighbours" in self.kinds:
            results[f"neighbours_{self.neighbours}"] = nearest_neighbours(here, there, self.neighbours)
        if "linear" in self.kinds:
            results["linear"] = linear_probe(here, there)
        return results


def features(job: Any, params: Tree, stats: Tree, inputs: Input, records: Records) -> Features:
    """The mean of the backbone's last stage over places, for each image that can be read, in order."""
    values, labels = [], []
    step = feature_step(job)
    for batch in job.batches(inputs, records, seed=None, targets=_first_label):
        batch, found = job.to_host(batch, step(params, stats, job.to_devices({"image": batch["image"]})["image"]))
        values.append(found[batch["mask"]])
        labels.append(batch["label"][batch["mask"]])
    return Features(np.concatenate(values), np.concatenate(labels), records.classes)


def _first_label(example: dict) -> dict[str, np.ndarray]:
    return {"label": np.array(example["labels"][0] if len(example["labels"]) else -1, np.int32)}


def feature_step(job: Any):
    """``(params, stats, images) -> float32 [b, d]``, one program for all probes of a network."""
    return _jitted(job.learner.graphdef, meshes.replicated(job.mesh))


@functools.lru_cache(maxsize=8)
def _jitted(graphdef: Any, replicated: Any):
    @functools.partial(jax.jit, out_shardings=replicated)
    def step(params: Tree, stats: Tree, images: Array) -> Array:
        backbone = merge(graphdef, params, stats).backbone
        return backbone(images, train=False)[-1].astype(jnp.float32).mean((1, 2))

    return step


def probe_run(run: Path, probes: Mapping[str, Probe], step: int | None = None, random: bool = False,
              allowed: Sequence[str] = ()) -> dict[str, float]:
    """Probe a run's checkpoint, or an untrained network of the same config, and keep the figures beside it.

    Returns:
      As `Probe.run`, each name after that of its probe (none for a probe called ""); also written to
      ``probes/STEP.json``, or ``probes/random.json``, in the run's folder.

    Raises:
      UserError: as `Probe.run` and `open_run`.
    """
    from big_vision_lite.training.evaluate import open_run

    job, state, at = open_run(run, step, allowed)
    if random:
        state = dataclasses.replace(job.fresh(), average=None)
    results = {" ".join(filter(None, (name, key))): value for name, probe in probes.items()
               for key, value in probe.run(job, state.best_params, state.stats).items()}
    folder = place(run) / "probes"
    folder.mkdir(exist_ok=True)
    name = "random" if random else str(at)
    (folder / f"{name}.json").write_text(json.dumps({"step": None if random else at, **results}, indent=2) + "\n")
    return results


def tabulate(results: dict[str, float]) -> str:
    """Lines of text: each kind's accuracy, of several seeds the least, the median and the most."""
    lines = []
    for name in [name for name in results if "/" not in name]:
        seeds = sorted(value for key, value in results.items() if key.startswith(f"{name}/"))
        spread = f"   ({seeds[0]:.4f} to {seeds[-1]:.4f}, {len(seeds)} seeds)" if seeds else ""
        lines.append(f"{name.replace('_', ' '):20} {results[name]:.4f}{spread}")
    return "\n".join(lines)
