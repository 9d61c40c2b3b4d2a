"""Fine-tune a pretrained network to the Oxford flowers, by BiT's HyperRule.

    bvl train configs/transfer/flowers.py:init=runs/pretrained --workdir runs/flowers

Not run here.
"""

from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import CATALOGUE, tfds_finetuning


def get_config(init: str | None = None, subset: int | None = None, depth: int = 50, batch_size: int = 512,
               freeze: bool = False, data_dir: str | None = None, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL.
      subset: learn from so many images, with the classes in their proportions.
      depth: of the backbone, where ``init`` is not a run.
    """
    name = "oxford_flowers102"
    return tfds_finetuning(name, CATALOGUE[name], init=init, depth=depth, batch_size=batch_size, freeze=freeze,
                           data_dir=data_dir, subset=subset, seed=seed)
