"""COCO detection from three pretrained networks: ImageNet, the large noisy set, and one after the other.

    bvl study configs/paper/coco_detection.py --workdir runs/coco                       # small stand-ins, on two cores
    bvl study configs/paper/coco_detection.py:scale=full --workdir DIR --emit slurm     # days on a TPU or GPU pod
    bvl report runs/coco --table coco

The paper reports 34.3 AP after ImageNet and 36.7 after JFT-300M (see `scaling.paper`). Scores are on val2017, or on
the images of ``minival=LIST,root=/coco``; test-dev is scored by COCO's server. Full scale was not run here.
"""

from big_vision_lite.scaling.paper_recipes import OPEN_IMAGES, Scale, detection, placed, pretrainings
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
        for row, pretraining in pretrainings(scale, seed, **large).items():
            experiment = detection(scale, OF_A_RUN + pretraining.name, "coco", root=root, minival=minival, seed=seed,
                                   data_dir=data_dir)
            runs += [pretraining, Run(f"coco,{pretraining.name}", experiment,
                                      factors=placed("coco", row, scale, init=row))]
    return Study("paper_coco_detection", tuple(runs))
