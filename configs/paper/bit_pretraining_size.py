"""BiT-S against BiT-M: the same network pretrained on 1.28 and on 14.2 million images, fine-tuned by the HyperRule.

    bvl study configs/paper/bit_pretraining_size.py --workdir runs/bit          # small stand-ins
    bvl study configs/paper/bit_pretraining_size.py:scale=full --workdir DIR    # five tasks, from published weights
    bvl report DIR --table bit_r50

Full scale pretrains nothing: ``small`` and ``large`` are the published ResNet-50x1 (or a run, file or URL). BiT-M
reaches 80.68 on ImageNet (reported). Mini pretrains on generated scenes of two sizes; docs/results/paper_tables.md has
its result and times. Full scale was not run here.
"""

from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.recipes.paper import Scale
from big_vision_lite.recipes.paper_mini import Miniature
from big_vision_lite.recipes.transfer import CATALOGUE, tfds_finetuning
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, batch_size: int = 512, data_dir: str | None = None,
              tasks: tuple[str, ...] = tuple(CATALOGUE),
              small: str = "https://storage.googleapis.com/bit_models/BiT-S-R50x1.npz",
              large: str = "hf:timm/resnetv2_50x1_bit.goog_in21k") -> Study:
    """
    Args:
      scale: full, published weights; or mini, generated scenes.
      seeds: number of seeds, from 0 on.
      batch_size: for full: images per step.
      data_dir: for full: folder of TFDS's datasets; None: TFDS's default.
      tasks: for full: datasets of TFDS, of those in `CATALOGUE`.
      small: for full: weights of BiT-S.
      large: for full: weights of BiT-M.
    """
    for task in tasks:
        if task not in CATALOGUE:
            raise UserError(f"bit_pretraining_size: no task {task!r}" + nearest(task, CATALOGUE))
    runs = []
    for seed in range(seeds):
        mini = Miniature()
        for row, weights, pretrain in (("BiT-S", small, mini.pretrain_imagenet), ("BiT-M", large, mini.pretrain_large)):
            in_table = {"table": "bit_r50", "row": row, "scale": scale, "init": row}
            if scale == "mini":
                pretraining = Run(f"{row},seed={seed}", pretrain(seed=seed))
                experiment = mini.imagenet_finetuning(RUN_PREFIX + pretraining.name, seed=seed)
                runs += [pretraining, Run(f"tuned,{pretraining.name}", experiment, factors=in_table)]
                continue
            for task in tasks:
                experiment = tfds_finetuning(task, CATALOGUE[task], init=weights, backbone=ResNetV2(50),
                                             batch_size=batch_size, data_dir=data_dir, seed=seed)
                # The table has ImageNet only: for the other tasks BiT's paper reports a larger network.
                factors = in_table if task == "imagenet2012" else {"init": row}
                runs.append(Run(f"{task},{row},seed={seed}", experiment, factors={"task": task, **factors}))
    return Study("paper_bit_pretraining_size", tuple(runs))
