"""Error as a function of images, passes, network and noise: the grid from which `bvl advise` answers.

    bvl study configs/studies/surface.py:root=/photos,sweep=(0.02,0.05,0.1) --workdir runs/rates      # first the rates
    bvl study configs/studies/surface.py:root=/photos,rates=runs/rates/results.csv --workdir runs/surface
    bvl advise runs/surface --images 100000

Photos in a folder (see recipes/photos.py), or generated scenes without one. Each network learns from nested subsets and
sees several numbers of images; all lengths share a trunk at a constant rate. docs/results/surface.md has the result.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from big_vision_lite.data.curation.steps import Curation, Exclude, LabelNoise, NestedSubset, ParentLabels, curation
from big_vision_lite.data.sources.emoji_art import emoji_classes
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.miniature import scenes_pretraining
from big_vision_lite.recipes.photos import photos_pretraining, photos_transfer
from big_vision_lite.scaling.studies.grid import UNTUNED, Rates, lengths
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Run, Study
from big_vision_lite.training.schedules import Schedule

RATES = {"photos": 0.1, "scenes": 3e-3}


def get_study(root: str | None = None, subsets: tuple[int, ...] = (1_400, 3_400, 8_000, 19_000, 45_000),
              seen: tuple[int, ...] = (7_000, 14_000, 28_000, 56_000, 112_000, 225_000, 450_000),
              max_passes: float = 80.0, depth: int = 10, width: float = 0.25, batch_size: int = 64,
              wrong: tuple[int, ...] = (0,), kind: str = "uniform", hierarchy: str | None = None,
              superclasses: bool = False, exclude: str | None = None,
              seeds: int = 3, rates: str | None = None, sweep: tuple[float, ...] = (),
              schedule: Literal["trunk", "cooldown", "cosine"] = "trunk", target: str | None = None,
              target_images: tuple[int, ...] = (), resident: Literal["host", "device"] = "host",
              study_name: str = "surface") -> Study:
    """
    Args:
      root: folder of photos with the splits train, val and test; None: generated scenes.
      subsets: numbers of images to learn from, nested.
      seen: numbers of images seen, with repeats.
      max_passes: longer runs over a number of images are left out.
      depth: layers of the ResNet.
      width: width factor of the ResNet; 1 is the standard width.
      batch_size: images per step.
      wrong: percentages of the labels that are replaced by wrong ones.
      kind: what wrong labels are drawn from, uniform or parent, see `LabelNoise`.
      hierarchy: csv file with the columns child,parent, for kind=parent; photos are then scored by superclasses too.
      superclasses: learn the parents of that hierarchy in place of the classes.
      exclude: file of image ids to leave out, such as near-duplicates of the test images.
      seeds: number of seeds, from 0 on; each has its own subsets, noise, initialization and data order.
      rates: results.csv of a sweep, which chooses the learning rates.
      sweep: learning rates to try, by the first seed: for each number of images with the smallest number seen, for the
        largest with all of them.
      schedule: trunk: runs of all lengths share their first steps; cooldown: each takes all its steps itself; cosine:
        so, with the rates of a cosine.
      target: folder of other photos, to which the longest run of each number of images is transferred.
      target_images: numbers of those photos to learn from.
      resident: where the decoded images are kept: device, for GPUs.
      study_name: name of the study, to tell studies apart in one report.
    """
    if (target is None) != (not target_images):
        raise UserError("surface: target and target_images go together; give both or none")
    if superclasses and hierarchy is None:
        raise UserError("surface: superclasses=true needs hierarchy, a csv file with the columns child,parent")
    data = "scenes" if root is None else "photos"
    chosen, file = (Rates(rates), rates) if rates else (None, "")
    varied = ({"labels": "superclasses"} if superclasses else {}) | ({"excluded": True} if exclude else {})
    warmup = max(1, round(0.005 * max(seen) / batch_size))

    def pretraining(length: int, schedule: Schedule, curate: tuple[Curation, ...], rate: float, seed: int
                    ) -> Experiment:
        fields = {"steps": length, "schedule": schedule, "curate": curate, "depth": depth, "width": width,
                  "batch_size": batch_size, "rate": rate, "seed": seed}
        if root is None:
            experiment = scenes_pretraining(images=max(subsets), classes=len(emoji_classes()), zipf=1.0,
                                            eval_images=5_000, probes=False, **fields)
        else:
            experiment = photos_pretraining(root, hierarchy=None if superclasses else hierarchy, **fields)
        return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, resident=resident))

    def grid(count: int, percent: int, seed: int, rate: float, seen_by_it: tuple[int, ...],
             **factors: str | float) -> tuple[Run, ...]:
        noise = LabelNoise(1 - percent / 100, kind=kind, hierarchy=hierarchy, seed=seed) if percent else None
        parents = ParentLabels(hierarchy) if superclasses and hierarchy else None
        subset = NestedSubset(count, seed=seed, stratified=root is not None)
        curate = curation(exclude=Exclude(exclude) if exclude else None, subset=subset, parents=parents, noise=noise)
        labels = f",wrong={percent}{kind if kind != 'uniform' else ''}" if percent else ""
        name = f"images={count},depth={depth}{labels},rate={rate:g},seed={seed}"
        return lengths(name, lambda length, schedule: pretraining(length, schedule, curate, rate, seed), seen_by_it,
                       batch_size, warmup=warmup, rates=schedule, factors={"images": count, **varied, **factors})

    runs: list[Run] = []
    for seed in range(1 if sweep else seeds):
        for count in subsets:
            possible = tuple(number for number in seen if number <= max_passes * count)
            for rate in sweep:
                tried = possible if count == max(subsets) else (min(possible),)
                runs += grid(count, wrong[0], seed, rate, tried, rate_choice="swept")
            for percent in wrong if not sweep else ():
                by_rate: dict[float, list[int]] = {}  # runs of one rate can share a trunk
                for number in possible:
                    by_rate.setdefault(chosen(depth, count, number) if chosen else RATES[data], []).append(number)
                for rate, numbers in by_rate.items():
                    runs += grid(count, percent, seed, rate, tuple(numbers), rate_choice=file or UNTUNED)
                longest = runs[-1]
                for number in target_images:
                    runs += _transfers(longest, target, number, depth, width, seed, varied)
        for number in target_images:
            runs.append(Run(f"scratch,target={number},seed={seed}",
                            photos_transfer(None, target, images=number, depth=depth, width=width, seed=seed),
                            factors={"target_images": number, "images": 0, "stage": "transfer"}))
    return Study(study_name, tuple(runs))


def _transfers(pretraining: Run, target: str, number: int, depth: int, width: float, seed: int,
               varied: Mapping[str, str | bool]) -> list[Run]:
    seen = pretraining.experiment.steps * pretraining.experiment.train.batch_size
    return [Run(f"{'frozen' if freeze else 'tuned'},target={number},{pretraining.name}",
                photos_transfer(RUN_PREFIX + pretraining.name, target, images=number, freeze=freeze, depth=depth,
                                width=width, seed=seed),
                factors={"target_images": number, "pretraining_seen": seen, **varied}) for freeze in (False, True)]
