"""Detection against the length of pretraining: a third, two thirds and all of the steps.

    bvl study configs/paper/training_length.py --workdir runs/length
    bvl study configs/paper/training_length.py:scale=full --workdir DIR --emit slurm
    bvl report runs/length --table training_length

The paper's lengths are 12, 24 and 36 million steps of 32 images: 4/3, 8/3 and 4 passes over JFT-300M. Each is a run of
its own here, with its own schedule; the paper took checkpoints of one run, as far as is known. Full scale was not run.
"""

from big_vision_lite.scaling.paper_recipes import OPEN_IMAGES, Scale, detection, placed, pretrain_large
from big_vision_lite.scaling.study import OF_A_RUN, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, name: str = "open_images_v4", images: int = OPEN_IMAGES,
              root: str | None = None, minival: str | None = None, data_dir: str | None = None) -> Study:
    """
    Args:
      scale: full, the paper's recipe; or mini, generated scenes.
      name: the large set, as TFDS names it.
      images: how many its train split has.
      root, minival: COCO's files and a list of images to score on, as of `recipes.coco`.
      data_dir: where TFDS's data sets are.
    """
    large = {"name": name, "images": images, "data_dir": data_dir}
    runs = []
    for seed in range(seeds):
        for row, thirds in (("12M", 1), ("24M", 2), ("36M", 3)):
            length = {"epochs": 4 * thirds / 3} if scale == "full" else {"steps": 300 * thirds}
            pretraining = Run(f"length={row},seed={seed}", pretrain_large(scale, seed=seed, **length, **large),
                              factors={"length": row})
            experiment = detection(scale, OF_A_RUN + pretraining.name, "coco", root=root, minival=minival, seed=seed,
                                   data_dir=data_dir)
            runs += [pretraining, Run(f"coco,{pretraining.name}", experiment,
                                      factors=placed("training_length", row, scale, length=row))]
    return Study("paper_training_length", tuple(runs))
