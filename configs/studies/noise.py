"""How many wrong labels does pretraining tolerate? The paper says about a fifth of JFT-300M's are wrong.

    bvl study configs/studies/noise.py --workdir runs/noise                       # 8 minutes on two cores
    bvl study configs/studies/noise.py:subsets=(2000,20000) --workdir runs/noise  # do more images make up for it?

0, 10, 20 and 40 % of the labels are replaced by wrong ones, nested: what is wrong at 10 % is wrong at 20 %, for any
number of images. Evaluation has the right labels. Each pretraining is followed by fine-tuning on clean new classes.
docs/results/studies.md has the result.
"""

from big_vision_lite.data.curation.steps import LabelNoise, NestedSubset, curation
from big_vision_lite.recipes.miniature import scenes_pretraining, transfers
from big_vision_lite.scaling.studies.study import Run, Study


def get_study(wrong: tuple[int, ...] = (0, 10, 20, 40), subsets: tuple[int, ...] = (10_000,), seeds: int = 1,
              steps: int = 400) -> Study:
    """
    Args:
      wrong: percentages of the labels that are replaced.
      subsets: numbers of scenes to pretrain on, nested; the largest number is generated.
      seeds: number of seeds, from 0 on.
      steps: length of each pretraining.
    """
    runs = []
    for seed in range(seeds):
        for subset in subsets:
            for percent in wrong:
                noise = LabelNoise(1 - percent / 100, seed=seed) if percent else None
                curate = curation(subset=NestedSubset(subset, seed=seed), noise=noise)
                experiment = scenes_pretraining(steps=steps, curate=curate, images=max(subsets), seed=seed)
                pretraining = Run(f"wrong={percent},images={subset},seed={seed}", experiment,
                                  factors={"images": subset, "noise": percent / 100})
                runs += [pretraining, *transfers(pretraining, ("tuned",))]
    return Study("noise", tuple(runs))
