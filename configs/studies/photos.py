"""What would more of your photos buy? The data-size curve of any folder of images, a folder a class.

    bvl study configs/studies/photos.py:root=/photos --workdir runs/photos
    bvl study configs/studies/photos.py:root=/photos,sizes=(500,2000,8000),seeds=3 --workdir runs/photos

Layout as for configs/image_folder.py, whose network and recipe these are, at half the width. Subsets are nested and
keep the proportions of the classes; every run takes the same number of steps. For 32-pixel images, 1,000 steps of 128
are 2 to 4 minutes a run on two cores. ``bvl laws runs/photos/results.csv`` then says how far the curve goes on.
"""

import dataclasses
from pathlib import Path

from big_vision_lite import config
from big_vision_lite.data.curation import NestedSubset
from big_vision_lite.experiment import Experiment
from big_vision_lite.scaling.study import Run, Study

RECIPE = Path(__file__).parent.parent / "image_folder.py"


def get_study(root: str, sizes: tuple[int, ...] = (500, 1_600, 5_000, 16_000, 50_000), seeds: int = 1,
              split: str = "val", size: int = 32, depth: int = 10, width: float = 0.25, steps: int = 1_000,
              name: str = "photos") -> Study:
    """
    Args:
      root: the folder.
      sizes: photos to learn from; as many as there are at most.
      seeds: 0 to below this; each chooses other subsets, starts and orders.
      split: what to score on: val, or test where there is no val.
      size: pixels of the network's input.
      steps: of each run, of 128 photos.
      name: of the study, to be told from others in one report.
    """
    runs = tuple(Run(f"images={images},seed={seed}", _experiment(root, images, seed, split, size, depth, width, steps),
                     factors={"images": images})
                 for seed in range(seeds) for images in sizes)
    return Study(name, runs)


def _experiment(root: str, images: int, seed: int, split: str, size: int, depth: int, width: float,
                steps: int) -> Experiment:
    recipe = config.load(f"{RECIPE}:root={root},split={split},size={size},depth={depth},width={width},steps={steps},"
                         f"seed={seed}")
    train = dataclasses.replace(recipe.train, curate=(NestedSubset(images, seed=seed, stratified=True),))
    return dataclasses.replace(recipe, train=train, eval_every=None)
