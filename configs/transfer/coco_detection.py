"""COCO detection from a pretrained backbone, by the paper's recipe or by detectron2's.

    bvl train configs/transfer/coco_detection.py:init=runs/pretrained --workdir runs/coco
    bvl train configs/transfer/coco_detection.py:init=runs/pretrained,recipe=fpn,depth=50,schedule=3x
    bvl train configs/transfer/coco_detection.py:root=/coco,init=runs/pretrained
    bvl train configs/transfer/coco_detection.py:root=/coco,init=runs/pretrained,minival=minival.txt
    bvl evaluate RUN --source /coco/annotations/image_info_test-dev2017.json:images=/coco/test2017 --submission OUT.json

Data: TFDS's coco/2017, or with ``root`` COCO's own files (annotations/, train2017/, val2017/). Evaluated on val2017, or
on ``minival``, your list of image ids of val2014 (the paper's 8,000 are not public), which needs val2014/ and its
annotations; these images are left out of train2017, which contains all of 2014 except val2017.

| recipe | depth | expected AP on val2017 from ImageNet weights | source |
|---|---|---|---|
| paper, 333,333 steps of 9 | 101 | 34.3, from JFT-300M 36.8, from both 37.4 (minival) | Sun et al. (2017); reported |
| c4 1x, 3x: 90,000 and 270,000 steps of 16 | 50 | 35.7, 38.4 | detectron2's model zoo |
| fpn 1x, 3x | 50 | 37.9, 40.2 | the same |
| fpn 3x | 101 | 42.0 | the same |

Time, by detectron2's speed on 8 V100: fpn 1x 5 hours, c4 1x 14 hours. BatchNorm keeps its statistics, and c4 and fpn
freeze the first stage too, which suits published weights; for networks of your own ``train_batchnorm=true`` trains all
layers. RoIAlign samples 2 x 2 points per bin; detectron2 adapts their number. Not run here.
"""

from typing import Literal

from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.transfer import coco, faster_rcnn


def get_config(init: str | None = None, recipe: Literal["paper", "c4", "fpn"] = "paper",
               schedule: Literal["1x", "3x"] = "1x", steps: int | None = None, depth: int = 101,
               batch_size: int | None = None, root: str | None = None, minival: str | None = None, freeze: bool = False,
               train_batchnorm: bool = False, data_dir: str | None = None, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      recipe: the paper's, or detectron2's with C4 or FPN features.
      schedule: length of c4 and fpn, as detectron2 names it.
      steps: length of the run; None: the recipe's.
      depth: layers of the backbone, if ``init`` is not a run.
      batch_size: images per step; the rate grows linearly with it, and the recipe's steps fall. None: 9 (paper) or 16.
      root: folder of COCO's own files; None: TFDS.
      minival: file of image ids to evaluate on, one per line; needs ``root``.
      freeze: freeze the backbone.
      train_batchnorm: train BatchNorm and the first stage too.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      seed: seed of initialization, data order and augmentation.
    """
    train, evals = coco(root, minival, data_dir)
    length, drops = {"paper": (3_000_000 // 9, (5 / 6,)), "1x": (90_000, (60 / 90, 80 / 90)),
                     "3x": (270_000, (210 / 270, 250 / 270))}["paper" if recipe == "paper" else schedule]
    return faster_rcnn(train, evals, recipe=recipe, length=length, drops=drops,
                       warmup=500 if recipe == "paper" else 1000, steps=steps, init=init, depth=depth,
                       batch_size=batch_size, freeze=freeze, train_batchnorm=train_batchnorm, seed=seed)
