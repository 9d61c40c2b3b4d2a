"""VOC 2007 detection from three pretrained networks, trained on trainval of 2007 and 2012.

    bvl study configs/paper/voc07_detection.py --workdir runs/voc07
    bvl study configs/paper/voc07_detection.py:scale=full,root=/data/VOC0712 --workdir DIR --emit slurm
    bvl report runs/voc07 --table voc07

``root`` is one VOC tree with the images of both years, whose names do not clash, and the lists trainval0712.txt (both
years) and test2007.txt in ImageSets/Main. Full scale was not run here.
"""

from big_vision_lite.scaling.paper_recipes import OPEN_IMAGES, Scale, detection, placed, pretrainings
from big_vision_lite.scaling.study import OF_A_RUN, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, name: str = "open_images_v4", images: int = OPEN_IMAGES,
              data_dir: str | None = None,
              root: str = "VOC0712") -> Study:
    """
    Args:
      scale: full, the paper's recipe; or mini, generated scenes.
      name: the large set, as TFDS names it.
      images: how many its train split has.
      data_dir: where TFDS's data sets are.
      root: the VOC tree, for full scale.
    """
    large = {"name": name, "images": images, "data_dir": data_dir}
    runs = []
    for seed in range(seeds):
        for row, pretraining in pretrainings(scale, seed, **large).items():
            experiment = detection(scale, OF_A_RUN + pretraining.name, "voc07", root=root, seed=seed)
            runs += [pretraining, Run(f"voc07,{pretraining.name}", experiment,
                                      factors=placed("voc07", row, scale, init=row))]
    return Study("paper_voc07_detection", tuple(runs))
