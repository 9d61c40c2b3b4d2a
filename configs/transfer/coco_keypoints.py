"""Keypoints of COCO's persons, by the pipeline that the paper takes (G-RMI) or by Xiao et al.'s simple baseline.

    bvl train configs/transfer/coco_keypoints.py:root=/coco,init=runs/pretrained --workdir runs/pose
    bvl train configs/transfer/coco_keypoints.py:root=/coco,init=runs/pretrained,recipe=simple,depth=50
    bvl evaluate runs/pose --boxes val2017_boxes.json --submission val2017_poses.json

Data: COCO's own files (annotations/person_keypoints_*.json, train2017/, val2017/); TFDS's coco has no keypoints. With
annotated boxes, AP is higher than with a detector's, by about 2 points (unverified). For numbers to compare, take
``boxes=`` or ``--boxes``: the results file of a detector (``bvl evaluate DETECTOR --submission FILE``).

| recipe | depth | boxes | reported | source |
|---|---|---|---|---|
| grmi | 101 | Faster R-CNN, Inception-ResNet-v2 | AP 64.9 on test-dev | Papandreou et al. 2017, by a second source |
| grmi | 101 | the paper's | from ImageNet 62.4, JFT-300M 64.8, both 64.4 on test-dev | Sun et al. (2017); unverified |
| simple | 50, 101, 152 | a detector of AP 56.4 | 70.4, 71.4, 72.0 on val2017 | Xiao et al.'s code |

`recipes/keypoints.py` lists what differs from each. Not run here.
"""

from typing import Literal

from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.keypoints import coco_persons, top_down


def get_config(root: str, init: str | None = None, recipe: Literal["grmi", "simple"] = "grmi", depth: int = 101,
               boxes: str | None = None, steps: int | None = None, batch_size: int | None = None, freeze: bool = False,
               seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of COCO's own files.
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      recipe: the paper's, or Xiao et al.'s.
      depth: layers of the backbone, if ``init`` is not a run.
      boxes: a detector's results for val2017, in COCO's format; None: annotated boxes.
      steps: length of the run; None: the recipe's.
      batch_size: images per step; the rate grows linearly with it, and the steps fall. None: 24 (grmi) or 128.
      freeze: freeze the backbone.
      seed: seed of initialization, data order and augmentation.
    """
    train, evals = coco_persons(root, boxes)
    return top_down(train, evals, recipe=recipe, init=init, depth=depth, batch_size=batch_size, steps=steps,
                    freeze=freeze, seed=seed)
