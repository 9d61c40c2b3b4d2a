"""What would more of your photos buy? The data-size curve of any folder of images with one folder per class.

    bvl study configs/studies/photos.py:root=/photos --workdir runs/photos
    bvl study configs/studies/photos.py:root=/photos,subsets=(500,2000,8000),seeds=3 --workdir runs/photos
    bvl laws runs/photos

Layout, network and recipe as in configs/image_folder.py, at half its width. Subsets are nested and keep the proportions
of the classes; every run takes the same number of steps. For 32-pixel images, 1,000 steps of 128 are 2 to 4 minutes per
run on two cores. `bvl laws` then says what more photos would buy.
"""

import dataclasses

from big_vision_lite import config
from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.scaling.studies.study import Run, Study

RECIPE = "configs/image_folder.py"


def get_study(root: str, subsets: tuple[int, ...] = (500, 1_600, 5_000, 16_000, 50_000), seeds: int = 1,
              eval_split: str = "val", size: int = 32, depth: int = 10, width: float = 0.25, steps: int = 1_000,
              study_name: str = "photos") -> Study:
    """
    Args:
      root: folder of the photos.
      subsets: numbers of photos to learn from, at most as many as there are.
      seeds: number of seeds, from 0 on; each has its own subsets, initialization and data order.
      eval_split: split to evaluate on: val, or test if there is no val.
      size: input size of the network in pixels.
      depth: layers of the ResNet.
      width: width factor of the ResNet; 1 is the standard width.
      steps: length of each run, in steps of 128 photos.
      study_name: name of the study, to tell studies apart in one report.
    """
    runs = []
    for seed in range(seeds):
        whole = config.load(RECIPE, root=root, eval_split=eval_split, size=size, depth=depth, width=width,
                            steps=steps, seed=seed)
        for subset in subsets:
            train = dataclasses.replace(whole.train, curate=(NestedSubset(subset, seed=seed, stratified=True),))
            experiment = dataclasses.replace(whole, train=train, eval_every=None)
            runs.append(Run(f"images={subset},seed={seed}", experiment, factors={"images": subset}))
    return Study(study_name, tuple(runs))
