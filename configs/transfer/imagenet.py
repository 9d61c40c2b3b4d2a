"""Fine-tune a pretrained network to ImageNet's 1000 classes.

    bvl train configs/transfer/imagenet.py:init=runs/jft --workdir runs/jft-imagenet
    bvl train configs/transfer/imagenet.py:init=runs/jft,size=224

BiT's HyperRule (20,000 steps of 512 images, mixup 0.1), but with the pixels of the paper (340 to 299) or those usual
today (256 to 224). Scored on the central crop and by ten crops. The paper has 79.2 top-1 for a ResNet-101 pretrained on
JFT-300M and fine-tuned, 77.5 from scratch (reported); BiT-M R50x1 has 80.7 by its rule (reported). Not run here.
"""

import dataclasses
from typing import Literal

from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import ResizeCrop, Squash
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import CATALOGUE, tfds_finetuning


def get_config(init: str | None = None, size: Literal[224, 299] = 299, subset: int | None = None, depth: int = 101,
               batch_size: int = 512, freeze: bool = False, data_dir: str | None = None, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL.
      size: of the crop.
      subset: learn from so many images, with the classes in their proportions.
      depth: of the backbone, where ``init`` is not a run.
    """
    resize = {224: 256, 299: 340}[size]
    tuning = tfds_finetuning("imagenet2012", CATALOGUE["imagenet2012"], init=init, depth=depth, batch_size=batch_size,
                             freeze=freeze, data_dir=data_dir, subset=subset, seed=seed, sides=(resize, size))
    validation: Input = tuning.evals["evaluation"]
    views = {"crop": ResizeCrop(resize, size, random=False), "ten_crops": Squash(resize)}
    return dataclasses.replace(
        tuning, head=dataclasses.replace(tuning.head, ten_crop=size),
        evals={name: dataclasses.replace(validation, transform=view) for name, view in views.items()})
