"""COCO detection from a pretrained backbone, by the paper's recipe or by detectron2's.

    bvl train configs/transfer/coco_detection.py:init=runs/pretrained --workdir runs/coco
    bvl train configs/transfer/coco_detection.py:init=runs/pretrained,recipe=fpn,depth=50,schedule=3x
    bvl train configs/transfer/coco_detection.py:root=/coco,init=runs/pretrained
    bvl train configs/transfer/coco_detection.py:root=/coco,init=runs/pretrained,minival=minival.txt
    bvl evaluate RUN --source /coco/annotations/image_info_test-dev2017.json:images=/coco/test2017 --submission OUT.json

Data: TFDS's coco/2017, or with ``root`` COCO's own files (annotations/, train2017/, val2017/). With ``minival``, a list
of ids of val2014's images (the paper's 8,000 are not public), scores are on these, under the name minival, from
val2014/ and its annotations; they are left out of train2017, which otherwise has all of 2014 but val2017. Without a
list, scores are on val2017 and have that name.

| recipe | depth | expected AP on val2017 from ImageNet weights | source |
|---|---|---|---|
| paper, 333,333 steps of 9 | 101 | 34.3, from JFT-300M 36.8, from both 37.4 (minival) | Sun et al. (2017); reported |
| c4 1x, 3x: 90,000 and 270,000 steps of 16 | 50 | 35.7, 38.4 | detectron2's model zoo |
| fpn 1x, 3x | 50 | 37.9, 40.2 | the same |
| fpn 3x | 101 | 42.0 | the same |

Time, by detectron2's speed on 8 V100: fpn 1x 5 hours, c4 1x 14 hours. BatchNorm keeps its statistics, and c4 and fpn
fix the first stage too, which suits published weights; for networks of your own ``tune_statistics=true`` lets all
learn. Sampling in RoIAlign is 2 x 2 a bin where detectron2's adapts. Not run here.
"""

from typing import Literal

from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import coco, faster_rcnn


def get_config(init: str | None = None, recipe: Literal["paper", "c4", "fpn"] = "paper",
               schedule: Literal["1x", "3x"] = "1x", depth: int = 101, batch_size: int | None = None,
               root: str | None = None, minival: str | None = None, freeze: bool = False,
               tune_statistics: bool = False, data_dir: str | None = None, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL.
      schedule: of c4 and fpn.
      depth: of the backbone, where ``init`` is not a run.
      batch_size: the rate grows linearly with it, and the number of steps falls; None: 9 for paper, else 16.
      root: folder of COCO's own files; None: TFDS.
      minival: file of image ids, one a line; needs ``root``.
      freeze: the backbone stays as it is.
      tune_statistics: BatchNorm and the first stage learn as well.
    """
    train, evals = coco(root, minival, data_dir)
    if recipe == "paper":
        length = {"steps": 3_000_000 // 9, "drops": (5 / 6,), "warmup": 500}
    else:
        length = {"1x": {"steps": 90_000, "drops": (60 / 90, 80 / 90)},
                  "3x": {"steps": 270_000, "drops": (210 / 270, 250 / 270)}}[schedule]
    return faster_rcnn(train, evals, recipe=recipe, init=init, depth=depth,
                       batch_size=batch_size or (9 if recipe == "paper" else 16), freeze=freeze,
                       tune_statistics=tune_statistics, seed=seed, **length)
