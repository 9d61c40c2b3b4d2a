"""VOC 2012 segmentation by DeepLab-ASPP-L from three pretrained networks.

    bvl study configs/paper/voc12_segmentation.py --workdir runs/voc12
    bvl study configs/paper/voc12_segmentation.py:scale=full,root=/data/VOC2012 --workdir DIR --emit slurm
    bvl report runs/voc12 --table voc12

``root`` is a VOC tree with SegmentationClassAug and ImageSets/Segmentation/train_aug.txt (10,582 images). Full scale
was not run here.
"""

from big_vision_lite.scaling.paper_recipes import OPEN_IMAGES, Scale, placed, pretrainings, segmentation
from big_vision_lite.scaling.study import OF_A_RUN, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, name: str = "open_images_v4", images: int = OPEN_IMAGES,
              data_dir: str | None = None,
              root: str = "VOC2012") -> Study:
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
            experiment = segmentation(scale, OF_A_RUN + pretraining.name, root=root, seed=seed)
            runs += [pretraining, Run(f"voc12,{pretraining.name}", experiment,
                                      factors=placed("voc12", row, scale, init=row))]
    return Study("paper_voc12_segmentation", tuple(runs))
