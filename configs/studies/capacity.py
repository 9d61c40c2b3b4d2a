"""Do deeper networks gain more from more images? The paper's comparison of ResNet-50, 101 and 152, in small.

    bvl study configs/studies/capacity.py --workdir runs/capacity               # half an hour on two cores

ResNet-10, 18 and 34 of a quarter of the usual width, each on three nested subsets for the same number of steps.
"""

from big_vision_lite.data.curation import NestedSubset
from big_vision_lite.scaling.recipes import scenes_pretraining, transfers
from big_vision_lite.scaling.study import Run, Study


def get_study(depths: tuple[int, ...] = (10, 18, 34), sizes: tuple[int, ...] = (500, 5_000, 50_000), seeds: int = 1,
              steps: int = 400) -> Study:
    """
    Args:
      depths: of the ResNets: 10, 18 or 34; from 50 on blocks are bottlenecks.
      sizes: scenes to pretrain on.
      seeds: 0 to below this.
      steps: of each pretraining.
    """
    runs = []
    for depth in depths:
        for seed in range(seeds):
            for images in sizes:
                experiment = scenes_pretraining(steps=steps, curate=(NestedSubset(images, seed=seed),), depth=depth,
                                                scenes=max(sizes), seed=seed)
                pretraining = Run(f"depth={depth},images={images},seed={seed}", experiment, factors={"images": images})
                runs += [pretraining, *transfers(pretraining, ("tuned",))]
    return Study("capacity", tuple(runs))
