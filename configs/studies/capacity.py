"""Do deeper networks gain more from more images? The paper's comparison of ResNet-50, 101 and 152, in miniature.

    bvl study configs/studies/capacity.py --workdir runs/capacity               # half an hour on two cores

ResNet-10, 18 and 34 at a quarter of the standard width, each on three nested subsets for the same number of steps.
docs/results/studies.md has the result.
"""

from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.recipes.miniature import scenes_pretraining, transfers
from big_vision_lite.scaling.studies.study import Run, Study


def get_study(depths: tuple[int, ...] = (10, 18, 34), subsets: tuple[int, ...] = (500, 5_000, 50_000), seeds: int = 1,
              steps: int = 400) -> Study:
    """
    Args:
      depths: layers of the ResNets: 10, 18 or 34; from 50 on blocks are bottlenecks.
      subsets: numbers of scenes to pretrain on, nested; the largest number is generated.
      seeds: number of seeds, from 0 on.
      steps: length of each pretraining.
    """
    runs = []
    for depth in depths:
        for seed in range(seeds):
            for subset in subsets:
                experiment = scenes_pretraining(steps=steps, curate=(NestedSubset(subset, seed=seed),), depth=depth,
                                                images=max(subsets), seed=seed)
                pretraining = Run(f"depth={depth},images={subset},seed={seed}", experiment, factors={"images": subset})
                runs += [pretraining, *transfers(pretraining, ("tuned",))]
    return Study("capacity", tuple(runs))
