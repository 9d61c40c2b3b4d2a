"""Fine-tune a pretrained network to ImageNet's 1,000 classes.

    bvl train configs/transfer/imagenet.py:init=runs/jft --workdir runs/jft-imagenet
    bvl train configs/transfer/imagenet.py:init=runs/jft,size=224

BiT's HyperRule (20,000 steps of 512 images, mixup 0.1), but with the paper's pixels (340 to 299) or those usual today
(256 to 224). Evaluated on the central crop and on ten crops. Reported: the paper's ResNet-101 reaches a top-1 of 79.2
pretrained on JFT-300M and 77.5 from scratch; BiT-M R50x1 reaches 80.7 by its rule. docs/reproducing.md estimates the
time; not run here.
"""

import dataclasses
from typing import Literal

from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms.image import Resize, ResizeCrop
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.transfer import CATALOGUE, tfds_finetuning


def get_config(init: str | None = None, size: Literal[224, 299] = 299, subset: int | None = None, depth: int = 101,
               steps: int | None = None, batch_size: int = 512, freeze: bool = False, data_dir: str | None = None,
               seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      size: crop size in pixels.
      subset: learn from this many images, with the classes in their proportions; None: all.
      depth: layers of the backbone, if ``init`` is not a run.
      steps: length of the run; None: the HyperRule's.
      batch_size: images per step.
      freeze: train only the head.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      seed: seed of initialization, data order and augmentation.
    """
    resize = {224: 256, 299: 340}[size]
    tuning = tfds_finetuning("imagenet2012", CATALOGUE["imagenet2012"], init=init, depth=depth, steps=steps,
                             batch_size=batch_size, freeze=freeze, data_dir=data_dir, subset=subset, seed=seed,
                             resolution=(resize, size))
    validation: Input = tuning.evals["evaluation"]
    views = {"crop": ResizeCrop(resize, size, random=False), "ten_crops": Resize(resize)}
    return dataclasses.replace(
        tuning, head=dataclasses.replace(tuning.head, ten_crop=size),
        evals={name: dataclasses.replace(validation, transform=view) for name, view in views.items()})
