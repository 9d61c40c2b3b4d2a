"""BiT-S against BiT-M: the same network pretrained on 1.28 and on 14.2 million images, fine-tuned by the HyperRule.

    bvl study configs/paper/bit_pretraining_size.py --workdir runs/bit          # small stand-ins
    bvl study configs/paper/bit_pretraining_size.py:scale=full --workdir DIR    # five tasks, from published weights
    bvl report DIR --table bit_r50

Full scale needs no pretraining: ``small`` and ``large`` are the published ResNet-50x1 (or a run, file or URL). BiT-M
reaches 80.68 on ImageNet (reported). Mini pretrains on scenes of two sizes. Full scale was not run here.
"""

from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.recipes import CATALOGUE, tfds_finetuning
from big_vision_lite.scaling.paper_recipes import (
    Scale,
    imagenet_finetuning,
    placed,
    pretrain_imagenet,
    pretrain_large,
)
from big_vision_lite.scaling.study import OF_A_RUN, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, batch_size: int = 512, data_dir: str | None = None,
              tasks: tuple[str, ...] = tuple(CATALOGUE),
              small: str = "https://storage.googleapis.com/bit_models/BiT-S-R50x1.npz",
              large: str = "hf:timm/resnetv2_50x1_bit.goog_in21k") -> Study:
    """
    Args:
      scale: full, published weights; or mini, generated scenes.
      tasks: of full scale, as TFDS names them; see `recipes.CATALOGUE`.
      small: weights of BiT-S.
      large: weights of BiT-M.
    """
    for task in tasks:
        if task not in CATALOGUE:
            raise UserError(f"bit_pretraining_size: no task {task!r}" + nearest(task, CATALOGUE))
    runs = []
    for seed in range(seeds):
        for row, weights, mini in (("BiT-S", small, pretrain_imagenet), ("BiT-M", large, pretrain_large)):
            if scale == "full":
                for task in tasks:
                    experiment = tfds_finetuning(task, CATALOGUE[task], init=weights, backbone=ResNetV2(50),
                                                 batch_size=batch_size, data_dir=data_dir, seed=seed)
                    # The table has ImageNet alone: for the other tasks BiT's paper reports a larger network.
                    where = placed("bit_r50", row, scale, init=row) if task == "imagenet2012" else {"init": row}
                    runs.append(Run(f"{task},{row},seed={seed}", experiment, factors={"task": task, **where}))
            else:
                pretraining = Run(f"{row},seed={seed}", mini(scale, seed=seed))
                experiment = imagenet_finetuning(scale, OF_A_RUN + pretraining.name, seed=seed)
                runs += [pretraining, Run(f"tuned,{row},seed={seed}", experiment,
                                          factors=placed("bit_r50", row, scale, init=row))]
    return Study("paper_bit_pretraining_size", tuple(runs))
