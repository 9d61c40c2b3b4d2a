"""BiT-S against BiT-M: the same network pretrained on 1.28 and on 14.2 million images, fine-tuned by the HyperRule.

    bvl study configs/paper/bit_pretraining_size.py --workdir runs/bit                # small stand-ins
    bvl study configs/paper/bit_pretraining_size.py:scale=full --workdir DIR          # ImageNet, from published weights
    bvl report DIR --table bit_r50

Full scale needs no pretraining: ``small`` and ``large`` are the published ResNet-50x1 (or a run, file or URL). BiT-M
reaches 80.68 on ImageNet (reported). Mini pretrains on scenes of two sizes. Full scale was not run here.
"""

from big_vision_lite import recipes
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.scaling.paper_recipes import (
    IMAGENET,
    Scale,
    imagenet_finetuning,
    placed,
    pretrain_imagenet,
    pretrain_large,
)
from big_vision_lite.scaling.study import OF_A_RUN, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, batch_size: int = 512, data_dir: str | None = None,
              small: str = "https://storage.googleapis.com/bit_models/BiT-S-R50x1.npz",
              large: str = "hf:timm/resnetv2_50x1_bit.goog_in21k") -> Study:
    """
    Args:
      scale: full, published weights on ImageNet; or mini, generated scenes.
      small: weights of BiT-S.
      large: weights of BiT-M.
    """
    runs = []
    for seed in range(seeds):
        for row, weights, mini in (("BiT-S", small, pretrain_imagenet), ("BiT-M", large, pretrain_large)):
            factors = placed("bit_r50", row, scale, init=row)
            if scale == "full":
                experiment = recipes.bit_finetuning(
                    Tfds("imagenet2012", "train", data_dir),
                    {"validation": Tfds("imagenet2012", "validation", data_dir)}, IMAGENET, init=weights,
                    pixels=500 * 375, backbone=ResNetV2(50), batch_size=batch_size, seed=seed)
            else:
                pretraining = Run(f"{row},seed={seed}", mini(scale, seed=seed))
                experiment = imagenet_finetuning(scale, OF_A_RUN + pretraining.name, seed=seed)
                runs.append(pretraining)
            runs.append(Run(f"tuned,{row},seed={seed}", experiment, factors=factors))
    return Study("paper_bit_pretraining_size", tuple(runs))
