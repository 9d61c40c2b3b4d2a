"""VOC 2007 detection from a pretrained backbone: learn from trainval of 2007 and 2012, evaluate on test of 2007.

    bvl train configs/transfer/voc07_detection.py:root=/data/VOC0712,init=runs/pretrained --workdir runs/voc07
    bvl train configs/transfer/voc07_detection.py:root=/data/VOC0712,init=runs/pretrained,recipe=c4,train_batchnorm=true

| recipe | depth | expected from ImageNet weights | source |
|---|---|---|---|
| paper, 65,555 steps of 9 | 101 | AP50 76.3, from JFT-300M 81.4, from both 81.3 | Sun et al. (2017); reported |
| c4, 18,000 steps of 16 | 50 | AP50 80.3 (11 points), AP 51.9 | detectron2's model zoo |
| c4, train_batchnorm, 24,000 steps | 50 | AP50 81.3, AP 53.5, AP75 58.8 | MoCo, its detection README |

Time, by detectron2's speed on 8 V100 (0.54 s per step of 16): 3 hours. Not run here.
"""

from typing import Literal

from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.transfer import faster_rcnn


def get_config(root: str, init: str | None = None, recipe: Literal["paper", "c4", "fpn"] = "paper",
               steps: int | None = None, depth: int = 101, batch_size: int | None = None, freeze: bool = False,
               train_batchnorm: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      root: one VOC tree with the images of both years, whose names do not clash, and the lists trainval0712.txt (both
        years) and test2007.txt in ImageSets/Main.
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      recipe: the paper's, or detectron2's with C4 or FPN features.
      steps: length of the run; None: the recipe's.
      depth: layers of the backbone, if ``init`` is not a run.
      batch_size: images per step; the rate grows linearly with it, and the recipe's steps fall. None: 9 (paper) or 16.
      freeze: freeze the backbone.
      train_batchnorm: train BatchNorm and the first stage too.
      seed: seed of initialization, data order and augmentation.
    """
    if recipe == "paper":
        length, drops, warmup = 590_000 // 9, (490 / 590,), 500
    else:
        length, drops, warmup = 24_000 if train_batchnorm else 18_000, (2 / 3, 8 / 9), 100
    return faster_rcnn(VocTree(root, "trainval0712"), {"test2007": VocTree(root, "test2007")}, recipe=recipe,
                       length=length, drops=drops, warmup=warmup, steps=steps, init=init, image_rate=3e-4,
                       depth=depth, batch_size=batch_size, freeze=freeze, train_batchnorm=train_batchnorm,
                       metric="VOC07_AP50", seed=seed)
