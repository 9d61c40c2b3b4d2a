"""Do near-duplicates between pretraining and test images explain the gain? Pretraining with them and without.

    bvl data duplicates --train SOURCE --against TEST --out duplicates
    bvl study configs/paper/near_duplicates.py:scale=full,exclude=duplicates/exclude.txt --workdir DIR --emit slurm
    bvl study configs/paper/near_duplicates.py:root=/photos,exclude=duplicates/exclude.txt --workdir runs/duplicates

The paper counted them (`scaling.paper`, table duplicates) and scored without them: little moved (unverified). As BiT
did, the pretraining images that resemble test images are left out, and the same test set is scored. Full scale: the
large set, then ImageNet. Mini: any folder of images, a folder a class, that has near-duplicates, such as CIFAR-10's
train and test images. Full scale was not run here.
"""

import dataclasses
from pathlib import Path

from big_vision_lite import config
from big_vision_lite.data.curation import Exclude
from big_vision_lite.errors import UserError
from big_vision_lite.scaling.paper_recipes import OPEN_IMAGES, Scale, imagenet_finetuning, pretrain_large
from big_vision_lite.scaling.study import OF_A_RUN, Run, Study

FOLDER = Path(__file__).parent.parent / "image_folder.py"


def get_study(exclude: str, scale: Scale = "mini", root: str | None = None, split: str = "test", seeds: int = 1,
              steps: int = 1_000, name: str = "open_images_v4", images: int = OPEN_IMAGES,
              data_dir: str | None = None) -> Study:
    """
    Args:
      exclude: file of ids, as `bvl data duplicates` writes it.
      root: for mini: the folder of images; its ``split`` is what is scored.
      steps: for mini.
      name: for full: the large set, as TFDS names it.
      images: how many its train split has.
    """
    runs = []
    for seed in range(seeds):
        for kind, file in (("all", None), ("without", exclude)):
            label = f"duplicates={kind},seed={seed}"
            factors = {"scale": scale, "duplicates": kind}
            if scale == "full":
                pretraining = Run(label, pretrain_large(scale, name=name, images=images, exclude=file, seed=seed,
                                                        data_dir=data_dir), factors=factors)
                tuned = imagenet_finetuning(scale, OF_A_RUN + label, seed=seed, data_dir=data_dir)
                runs += [pretraining, Run(f"imagenet,{label}", tuned, factors=factors)]
                continue
            if root is None:
                raise UserError("near_duplicates in mini scale needs root=FOLDER, a folder of images with a folder a "
                                "class")
            experiment = config.load(f"{FOLDER}:root={root},split={split},size=32,width=0.25,steps={steps},seed={seed}")
            if file:
                experiment = dataclasses.replace(
                    experiment, train=dataclasses.replace(experiment.train, curate=(Exclude(file),)))
            runs.append(Run(label, experiment, factors=factors))
    return Study("paper_near_duplicates", tuple(runs))
