"""Semantic segmentation of VOC 2012, by the paper's recipe or by mmseg's: what pretraining is worth in mIoU.

    bvl train configs/transfer/voc12_segmentation.py:root=/data/VOCdevkit/VOC2012,init=runs/pretrained
    bvl train configs/transfer/voc12_segmentation.py:root=/data/VOCdevkit/VOC2012,init=runs/pretrained,recipe=mmseg

Learns from the 10,582 images of train_aug, whose masks (Hariharan et al. 2011) are in SegmentationClassAug/ and whose
list is ImageSets/Segmentation/train_aug.txt (in some copies trainaug.txt: train_split=trainaug); evaluated on the 1,449
of val at their original size.

paper: DeepLab-ASPP-L on ResNet-101. Sun et al. (2017, section 5.4) report a mIoU of 73.6 from ImageNet, 75.3 from
  JFT-300M, 76.5 from both, and a rate of 3e-3. Steps, batch, crop and decay are unknown; these are DeepLab v2's (Chen
  et al. 2016, section 4.1: poly decay, 20,000 steps of 10 images, 321 pixels, BatchNorm not trained). DeepLab v2's
  tenfold rate of the last layer is --transfer.lr-multipliers.decoder 10.
mmseg: DeepLabV3 of stride 8 with an auxiliary head, 20,000 steps of 16 crops of 512 pixels. Its model zoo reports 78.70
  for ResNet-101 and 76.17 for 50 (79.95 and 77.42 with several scales and flips), from ImageNet. Theirs has a stem of
  three 3x3 filters and refuses crops that one class fills to three quarters; ours has neither.

Time: by mmseg's speed on a V100 (0.85 s per step of as many pixels per GPU) about 5 hours on four of them for mmseg's
recipe at depth 101; less for the paper's. Not run here.
"""

from typing import Literal

from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.transfer import deeplab


def get_config(root: str, init: str | None = None, recipe: Literal["paper", "mmseg"] = "paper", depth: int = 101,
               batch_size: int | None = None, steps: int = 20_000, freeze: bool = False, train_split: str = "train_aug",
               multi_scale_flip: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of the VOC tree.
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      recipe: the paper's or mmseg's.
      depth: layers of the backbone, if ``init`` is not a run.
      batch_size: images per step; the rate grows linearly with it. None: 10 (paper) or 16.
      steps: length of the run.
      freeze: train only the decoder.
      train_split: list of the images to learn from; ``train`` has 1,464 with masks in SegmentationClass.
      multi_scale_flip: evaluate at six scales, each also mirrored.
      seed: seed of initialization, data order and augmentation.
    """
    train = VocTree(root, train_split, masks="class" if train_split == "train" else "class_aug")
    return deeplab(train, {"val": VocTree(root, "val", masks="class")}, recipe=recipe, init=init, depth=depth,
                   batch_size=batch_size, steps=steps, freeze=freeze, multi_scale_flip=multi_scale_flip, seed=seed)
