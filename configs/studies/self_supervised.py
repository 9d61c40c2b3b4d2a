"""Are labels worth having? Pretraining with and without them on nested subsets of photos, probed and transferred.

    bvl study configs/studies/self_supervised.py:root=/photos --workdir runs/self_supervised --list
    bvl study configs/studies/self_supervised.py:root=/photos,target=/others --workdir runs/self_supervised
    bvl study configs/studies/self_supervised.py:root=/photos,methods=(simclr,byol) --workdir runs/self_supervised

``root`` has train and val folders with one folder per class; self-supervised runs use the labels for probes and to draw
stratified subsets, so that all methods see the same photos. All runs of a study see equally many photos, of which
SimCLR and BYOL see two views each. With ``target``, backbones are then fine-tuned and frozen on few of other photos.
"""

import dataclasses
from typing import Literal

from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.recipes.photos import photos_pretraining, photos_probe, photos_self_supervised, photos_transfer
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Run, Study


def get_study(root: str, target: str | None = None, subsets: tuple[int, ...] = (1_400, 8_000, 45_000),
              methods: tuple[Literal["simclr", "byol", "supervised"], ...] = ("simclr", "supervised"),
              seen: int = 450_000, target_images: tuple[int, ...] = (500, 5_000, 50_000), target_steps: int = 500,
              depth: int = 10, width: float = 0.25, batch_size: int = 256, eval_split: str = "val", seeds: int = 3,
              study_name: str = "self_supervised") -> Study:
    """
    Args:
      root: folder of the photos, with a folder per split.
      target: folder of other photos to transfer to, with train and test folders; None: no transfer.
      subsets: numbers of photos to pretrain on, nested.
      methods: how to pretrain.
      seen: photos seen by each pretraining, with repeats.
      target_images: numbers of labelled target photos to learn from, nested.
      target_steps: length of each run on the target, in steps of 64 photos.
      depth: layers of the ResNet.
      width: width factor of the ResNet; 1 is the standard width.
      batch_size: images per step of pretraining without labels; with labels it is 64.
      eval_split: split to evaluate on, and to probe on.
      seeds: number of seeds, from 0 on; each has its own subsets, initialization and data order.
      study_name: name of the study, to tell studies apart in one report.
    """
    runs, probes, evals = [], {"probe": photos_probe(root, eval_split)}, (eval_split,)

    def transfers(label: str, init: str | None, seed: int, factors: dict[str, str | int]) -> list[Run]:
        return [Run(f"{'frozen' if freeze else 'tuned'},target={count},{label}",
                    photos_transfer(init, target, images=count, freeze=freeze, steps=target_steps, depth=depth,
                                    width=width, seed=seed),
                    factors={"target_images": count, "stage": "transfer", **factors})
                for count in target_images for freeze in ((False, True) if init else (False,)) if target]

    for seed in range(seeds):
        for method in methods:
            for count in subsets:
                curate = (NestedSubset(count, seed=seed, stratified=True),)
                if method == "supervised":
                    experiment = photos_pretraining(root, steps=max(1, seen // 64), curate=curate, depth=depth,
                                                    width=width, seed=seed, evals=evals)
                else:
                    experiment = photos_self_supervised(root, method, steps=max(1, seen // batch_size), curate=curate,
                                                        depth=depth, width=width, batch_size=batch_size, seed=seed,
                                                        evals=evals)
                name, factors = f"{method},images={count},seed={seed}", {"images": count, "method": method}
                runs.append(Run(name, dataclasses.replace(experiment, probes=probes), factors=factors))
                runs += transfers(name, RUN_PREFIX + name, seed, {"method": method})
        runs += transfers(f"scratch,seed={seed}", None, seed, {"method": "scratch", "images": 0})
    return Study(study_name, tuple(runs))
