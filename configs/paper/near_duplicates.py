"""Do near-duplicates of test images in the pretraining set explain the gain? Pretraining with and without them.

    bvl data duplicates --train SOURCE --against TEST --out duplicates
    bvl study configs/paper/near_duplicates.py:root=/photos,exclude=duplicates/exclude.txt --workdir runs/duplicates

The paper counted them (`scaling.paper`, table duplicates) and scored without them: little changed (unverified). As in
BiT, pretraining images that resemble test images are left out, and the same test set is scored. Full scale: the large
set, then ImageNet; not run here. Mini: any folder of images with near-duplicates, one folder per class, such as
CIFAR-10's train and test images; docs/results/paper_tables.md has its result and times.
"""

import dataclasses

from big_vision_lite import config
from big_vision_lite.data.curation.steps import Exclude
from big_vision_lite.errors import UserError
from big_vision_lite.recipes.paper import Full, Scale
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Run, Study

RECIPE = "configs/image_folder.py"


def get_study(exclude: str, scale: Scale = "mini", root: str | None = None, eval_split: str = "test", seeds: int = 1,
              steps: int = 1_000, name: str | None = None, open_images: str = "open_images_v7",
              data_dir: str | None = None) -> Study:
    """
    Args:
      exclude: file of image ids to leave out, as `bvl data duplicates` writes it.
      scale: full, the large set and ImageNet; or mini, a folder of images.
      root: for mini: the folder.
      eval_split: for mini: split to evaluate on.
      seeds: number of seeds, from 0 on.
      steps: for mini: length of each run.
      name: for full: name of the large set in TFDS; None: Open Images V7.
      open_images: for full: folder of Open Images V7.
      data_dir: for full: folder of TFDS's datasets; None: TFDS's default.
    """
    if scale == "mini" and root is None:
        raise UserError("near_duplicates in mini scale needs root=FOLDER, a folder of images with one folder per class")
    runs = []
    for seed in range(seeds):
        for kind, file in (("all", None), ("without", exclude)):
            run_name = f"duplicates={kind},seed={seed}"
            factors = {"scale": scale, "duplicates": kind}
            if scale == "full":
                recipes = Full(name, open_images, data_dir=data_dir)
                pretraining = recipes.pretrain_large(exclude=file, seed=seed)
                finetuning = recipes.imagenet_finetuning(RUN_PREFIX + run_name, seed=seed)
                runs += [Run(run_name, pretraining, factors=factors),
                         Run(f"imagenet,{run_name}", finetuning, factors=factors)]
                continue
            experiment = config.load(RECIPE, root=root, eval_split=eval_split, size=32, width=0.25, steps=steps,
                                     seed=seed)
            if file:
                experiment = dataclasses.replace(
                    experiment, train=dataclasses.replace(experiment.train, curate=(Exclude(file),)))
            runs.append(Run(run_name, experiment, factors=factors))
    return Study("paper_near_duplicates", tuple(runs))
