"""ImageNet accuracy from random weights and after pretraining on the large noisy set.

    bvl study configs/paper/imagenet_finetuning.py --workdir runs/imagenet
    bvl study configs/paper/imagenet_finetuning.py:scale=full --workdir DIR --emit slurm
    bvl report runs/imagenet --table imagenet

The paper reports 77.5 from random weights and 79.2 after JFT-300M (unverified). How it fine-tuned is unknown: BiT's
HyperRule stands in. Full scale was not run here.
"""

from big_vision_lite.scaling.paper_recipes import (
    OPEN_IMAGES,
    Scale,
    imagenet_finetuning,
    placed,
    pretrain_imagenet,
    pretrain_large,
)
from big_vision_lite.scaling.study import OF_A_RUN, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, name: str = "open_images_v4", images: int = OPEN_IMAGES,
              data_dir: str | None = None) -> Study:
    """
    Args:
      scale: full, the paper's recipe; or mini, generated scenes.
      name: the large set, as TFDS names it.
      images: how many its train split has.
      data_dir: where TFDS's data sets are.
    """
    large = {"name": name, "images": images, "data_dir": data_dir}
    runs = []
    for seed in range(seeds):
        scratch = (pretrain_imagenet(scale, seed=seed, data_dir=data_dir) if scale == "full"
                   else imagenet_finetuning(scale, None, seed=seed))
        pretraining = Run(f"large,seed={seed}", pretrain_large(scale, seed=seed, **large))
        tuned = imagenet_finetuning(scale, OF_A_RUN + pretraining.name, seed=seed, data_dir=data_dir)
        runs += [Run(f"random,seed={seed}", scratch, factors=placed("imagenet", "random", scale, stage="transfer")),
                 pretraining, Run(f"tuned,{pretraining.name}", tuned, factors=placed("imagenet", "300M", scale))]
    return Study("paper_imagenet_finetuning", tuple(runs))
