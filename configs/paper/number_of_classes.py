"""Detection against the number of pretraining classes, at the same number of images.

    bvl study configs/paper/number_of_classes.py --workdir runs/classes
    bvl study configs/paper/number_of_classes.py:scale=full --workdir DIR --emit slurm
    bvl report runs/classes --table classes

The paper kept 941 classes that match ImageNet's, or all 18,291, on 30 million images. Here the most frequent ones of
the large set, or all; a tenth of its images. Full scale was not run here.
"""

from big_vision_lite.scaling.paper_recipes import MINI_LARGE, OPEN_IMAGES, Scale, detection, placed, pretrain_large
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
    subset = (MINI_LARGE if scale == "mini" else images) // 10
    few = 20 if scale == "mini" else 941
    runs = []
    for seed in range(seeds):
        for row, vocabulary in (("1K", few), ("18K", None)):
            pretraining = Run(f"classes={vocabulary or 'all'},seed={seed}",
                              pretrain_large(scale, subset=subset, vocabulary=vocabulary, seed=seed, **large),
                              factors={"images": subset})
            experiment = detection(scale, OF_A_RUN + pretraining.name, "coco", root=root, minival=minival, seed=seed,
                                   data_dir=data_dir)
            runs += [pretraining, Run(f"coco,{pretraining.name}", experiment, factors=placed("classes", row, scale))]
    return Study("paper_number_of_classes", tuple(runs))
