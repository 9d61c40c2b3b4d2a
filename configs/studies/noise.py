"""How many wrong labels does pretraining forgive? The paper says about a fifth of JFT-300M's are wrong.

    bvl study configs/studies/noise.py --workdir runs/noise                     # 8 minutes on two cores
    bvl study configs/studies/noise.py:sizes=(2000,20000) --workdir runs/noise  # and whether more images make up for it

0, 10, 20 and 40 % of the labels are replaced by wrong ones, the same at every size and nested: what is wrong at 10 % is
wrong at 20 %. Evaluation has the right labels. Each pretraining is followed by fine-tuning on clean new classes.
"""

from big_vision_lite.data.curation import LabelNoise, NestedSubset, curation
from big_vision_lite.scaling.recipes import scenes_pretraining, transfers
from big_vision_lite.scaling.study import Run, Study


def get_study(wrong: tuple[int, ...] = (0, 10, 20, 40), sizes: tuple[int, ...] = (10_000,), seeds: int = 1,
              steps: int = 400) -> Study:
    """
    Args:
      wrong: per cent of the labels that are replaced.
      sizes: scenes to pretrain on.
      seeds: 0 to below this.
      steps: of each pretraining.
    """
    runs = []
    for seed in range(seeds):
        for images in sizes:
            for percent in wrong:
                noise = LabelNoise(1 - percent / 100, seed=seed) if percent else None
                curate = curation(subset=NestedSubset(images, seed=seed), noise=noise)
                experiment = scenes_pretraining(steps=steps, curate=curate, scenes=max(sizes), seed=seed)
                pretraining = Run(f"wrong={percent},images={images},seed={seed}", experiment,
                                  factors={"images": images, "noise": percent / 100})
                runs += [pretraining, *transfers(pretraining, ("tuned",))]
    return Study("noise", tuple(runs))
