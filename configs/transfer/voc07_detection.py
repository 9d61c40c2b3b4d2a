"""VOC 2007 detection from a pretrained backbone: learn from trainval of 2007 and 2012, score test of 2007.

    bvl train configs/transfer/voc07_detection.py:root=/data/VOC0712,init=runs/pretrained --workdir runs/voc07
    bvl train configs/transfer/voc07_detection.py:root=/data/VOC0712,init=runs/pretrained,recipe=c4,tune_statistics=true

``root`` is one VOC tree with the images of both years, whose names do not clash, and the lists trainval0712.txt (both
years) and test2007.txt in ImageSets/Main.

| recipe | depth | expected from ImageNet weights | source |
|---|---|---|---|
| paper, 65,555 steps of 9 | 101 | AP50 76.3, from JFT-300M 81.4, from both 81.3 | Sun et al. (2017); reported |
| c4, 18,000 steps of 16 | 50 | AP50 80.3 (11 points), AP 51.9 | detectron2's model zoo |
| c4, tune_statistics, 24,000 steps | 50 | AP50 81.3, AP 53.5, AP75 58.8 | MoCo, its detection README |

Time, by detectron2's speed on 8 V100 (0.54 s a step of 16): 3 hours. Not run here.
"""

from typing import Literal

from big_vision_lite.data.voc_tree import VocTree
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import faster_rcnn


def get_config(root: str, init: str | None = None, recipe: Literal["paper", "c4", "fpn"] = "paper", depth: int = 101,
               batch_size: int | None = None, freeze: bool = False, tune_statistics: bool = False,
               seed: int = 0) -> Experiment:
    """
    Args:
      root: the VOC tree.
      init: a run, a file of weights, hf:REPO or a URL.
      depth: of the backbone, where ``init`` is not a run.
      batch_size: the rate grows linearly with it, and the number of steps falls; None: 9 for paper, else 16.
      freeze: the backbone stays as it is.
      tune_statistics: BatchNorm and the first stage learn as well.
    """
    length = {"steps": 590_000 // 9, "drops": (5 / 6,), "warmup": 500}
    if recipe != "paper":
        length = {"steps": 24_000 if tune_statistics else 18_000, "drops": (2 / 3, 8 / 9), "warmup": 100}
    return faster_rcnn(VocTree(root, "trainval0712"), {"test2007": VocTree(root, "test2007")}, recipe=recipe,
                       init=init, depth=depth, batch_size=batch_size or (9 if recipe == "paper" else 16),
                       freeze=freeze, tune_statistics=tune_statistics, metric="VOC07_AP50", seed=seed, **length)
