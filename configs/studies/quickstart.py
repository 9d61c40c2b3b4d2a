"""Do more images help, before and after transfer? The main question, in three minutes on two cores.

    bvl study configs/studies/quickstart.py --workdir runs/study
    bvl report runs/study

Three pretrainings on 200, 2,000 and 20,000 generated scenes, nested, for the same number of steps. Each is then
evaluated on classes it never saw: by few-shot probes, and by fine-tuning on 1,000 scenes.
"""

from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.recipes.miniature import scenes_pretraining, transfers
from big_vision_lite.scaling.studies.study import Run, Study


def get_study(subsets: tuple[int, ...] = (200, 2_000, 20_000), steps: int = 300, seed: int = 0) -> Study:
    """
    Args:
      subsets: numbers of scenes to pretrain on, nested; the largest number is generated.
      steps: length of each pretraining, in steps of 128 scenes.
      seed: seed of subsets, initialization, data order and augmentation.
    """
    runs = []
    for subset in subsets:
        experiment = scenes_pretraining(steps=steps, curate=(NestedSubset(subset, seed=seed),), images=max(subsets),
                                        seed=seed)
        pretraining = Run(f"images={subset}", experiment, factors={"images": subset})
        runs += [pretraining, *transfers(pretraining, ("tuned",))]
    return Study("quickstart", tuple(runs))
