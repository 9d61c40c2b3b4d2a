"""Does depth need data? ResNets of three depths, pretrained on ImageNet and on the large set, then COCO detection.

    bvl study configs/paper/capacity.py --workdir runs/paper_capacity
    bvl study configs/paper/capacity.py:scale=full --workdir DIR --emit slurm
    bvl report runs/paper_capacity --table capacity

The paper compares ResNet-50, 101 and 152; mini has 10, 18 and 34 in their places. Full scale was not run here.
"""

from big_vision_lite.scaling.paper_recipes import (
    OPEN_IMAGES,
    Scale,
    detection,
    placed,
    pretrain_imagenet,
    pretrain_large,
)
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
        for named, small in ((50, 10), (101, 18), (152, 34)):
            depth = small if scale == "mini" else named
            imagenet = pretrain_imagenet(scale, depth=depth, seed=seed, data_dir=data_dir)
            for data, experiment in (("ImageNet", imagenet),
                                     ("300M", pretrain_large(scale, depth=depth, seed=seed, **large))):
                pretraining = Run(f"{data},depth={depth},seed={seed}", experiment)
                tuned = detection(scale, OF_A_RUN + pretraining.name, "coco", root=root, minival=minival, depth=depth,
                                  seed=seed, data_dir=data_dir)
                runs += [pretraining, Run(f"coco,{pretraining.name}", tuned, factors=placed(
                    "capacity", f"ResNet-{named}, {data}", scale, init=data))]
    return Study("paper_capacity", tuple(runs))
