"""Which half of the photos is worth keeping? Photos pruned by the scores of a run, against as many random ones.

    bvl study configs/studies/pruning.py:root=/photos --workdir runs/pruning
    bvl data score runs/pruning/all,images=8000,wrong=0,seed=0 --out FILE.arrow
    bvl study configs/studies/pruning.py:root=/photos,scores=runs/pruning --workdir runs/pruning

The first line trains runs on all photos of each subset, and on random parts of it. The second scores the photos of such
a run; FILE.arrow is scores.arrow in its folder, and each run named "all" needs one. The third then trains on the photos
with the highest and with the lowest scores (Sorscher et al. 2022). All runs see equally many photos. With wrong labels,
networks learn and scores are computed from the same ones.
"""

import dataclasses
from typing import Literal

from big_vision_lite.data.curation.scores import KeepByScore, Score
from big_vision_lite.data.curation.steps import Curation, LabelNoise, NestedSubset
from big_vision_lite.recipes.photos import photos_pretraining
from big_vision_lite.scaling.studies.study import Run, Study


def get_study(root: str, subsets: tuple[int, ...] = (8_000, 45_000), wrong: tuple[int, ...] = (0, 20),
              fractions: tuple[float, ...] = (0.5,), scores: str | None = None, score: Score = "loss",
              which: tuple[Literal["high", "low"], ...] = ("high", "low"), stratified: bool = True, seen: int = 112_000,
              depth: int = 10, width: float = 0.25, eval_split: str = "val", seeds: int = 3,
              study_name: str = "pruning") -> Study:
    """
    Args:
      root: folder of the photos, with a folder per split and in it one per class.
      subsets: numbers of photos to prune, nested.
      wrong: percentages of the labels that are replaced by wrong ones.
      fractions: shares of the photos to keep.
      scores: folder of the runs on all photos, each with scores.arrow; None: no pruning by score.
      score: the score to prune by.
      which: keep photos with high scores or with low ones.
      stratified: keep the shares of the classes.
      seen: photos seen by each run, with repeats.
      depth: layers of the ResNet.
      width: width factor of the ResNet; 1 is the standard width.
      eval_split: split to evaluate on.
      seeds: number of seeds, from 0 on; each has its own subsets, wrong labels, initialization and data order.
      study_name: name of the study, to tell studies apart in one report.
    """
    runs = []

    def run(name: str, seed: int, curate: tuple[Curation, ...], after: tuple[str, ...] = (),
            **factors: str | float) -> None:
        experiment = photos_pretraining(root, steps=max(1, seen // 64), curate=curate, depth=depth, width=width,
                                        seed=seed, evals=(eval_split,))
        runs.append(Run(name, experiment, after=after, factors=factors))

    for seed in range(seeds):
        for count in subsets:
            for percent in wrong:
                noise = (LabelNoise(1 - percent / 100, seed=seed),) if percent else ()
                whole = NestedSubset(count, seed=seed, stratified=True)
                label = f"images={count},wrong={percent},seed={seed}"
                run(f"all,{label}", seed, (whole, *noise), images=count, pruning="none", kept=1.0)
                for fraction in fractions:
                    left = round(fraction * count)
                    of = {"images": left, "pruned_from": count, "kept": fraction}
                    random = dataclasses.replace(whole, images=left)
                    run(f"random={fraction:g},{label}", seed, (random, *noise), pruning="random", **of)
                    for side in which if scores else ():
                        keep = KeepByScore(f"{scores}/all,{label}/scores.arrow", fraction, side, score, stratified)
                        run(f"{side}={fraction:g},{score},{label}", seed, (whole, *noise, keep), (f"all,{label}",),
                            pruning=f"{side} {score}", **of)
    return Study(study_name, tuple(runs))
