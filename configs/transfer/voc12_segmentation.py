"""Semantic segmentation of VOC 2012, by the paper's recipe or by mmseg's: what pretraining is worth in mIoU.

    bvl train configs/transfer/voc12_segmentation.py:root=/data/VOCdevkit/VOC2012,init=runs/pretrained
    bvl train configs/transfer/voc12_segmentation.py:root=/data/VOCdevkit/VOC2012,init=runs/pretrained,recipe=mmseg

Learns from the 10,582 images of train_aug, whose masks (Hariharan et al. 2011) are in SegmentationClassAug/ and whose
list is ImageSets/Segmentation/trainaug.txt; scores the 1,449 of val at their original size.

paper: DeepLab-ASPP-L on ResNet-101. Sun et al. (2017, section 5.4) report an mIoU of 73.6 from ImageNet, 75.3 from
  JFT-300M, 76.5 from both, and a rate of 3e-3; steps, batch, crop and decay are not known and those of DeepLab v2 (Chen
  et al. 2016, section 4.1: poly decay, 20,000 steps of 10 images, 321 pixels, BatchNorm not trained). DeepLab v2's
  tenfold rate of the last layer is --transfer.rates.decoder 10.
mmseg: DeepLabV3 of stride 8 with an auxiliary head, 20,000 steps of 16 crops of 512 pixels. Its model zoo reports 78.70
  for ResNet-101 and 76.17 for 50 (79.95 and 77.42 with several scales and flips), from ImageNet. Theirs has a stem of
  three 3x3 filters and refuses crops that one class fills to three quarters; this has not.

Time: by mmseg's speed on a V100 (0.85 s for a step of as many pixels a GPU) about 5 hours on four of them for mmseg's
recipe at depth 101; less for the paper's. Not run here.
"""

from typing import Literal

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.joint_transforms import Fit, ScaleJitter
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.voc_tree import VocTree
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import ASPPL, DeepLabV3, Segmentation, dilated
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Poly
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, recipe: Literal["paper", "mmseg"] = "paper", depth: int = 101,
               batch_size: int | None = None, steps: int = 20_000, freeze: bool = False, train: str = "trainaug",
               several_views: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL.
      depth: of the backbone, where ``init`` is not a run.
      batch_size: the rate grows linearly with it; None: the recipe's.
      freeze: learn the decoder alone, on fixed features.
      train: list of the images to learn from; ``train`` has 1,464 with masks in SegmentationClass.
      several_views: evaluate at six scales and mirrored.
    """
    usual = 10 if recipe == "paper" else 16
    batch = batch_size or usual
    views = dict(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True) if several_views else {}
    if recipe == "paper":
        crop, size = ScaleJitter(321), 513
        whole = ScaleJitter(size, scale=(1.0, 1.0), random=False)  # VOC's images have at most 500 pixels a side
        head = Segmentation(ASPPL(), size, **views)
        optimizer = SGD(3e-3 * batch / usual, Poly(), weight_decay=5e-4)
    else:
        crop, size = ScaleJitter(512, photometric=True), 768
        whole = Fit(short=512, long=size, buckets=((512, size), (size, 512)), random=False)
        head = Segmentation(DeepLabV3((12, 24, 36), channels=512), size, auxiliary=0.4, **views)
        optimizer = SGD(0.01 * batch / usual, Poly(final=0.01), weight_decay=5e-4)
    return Experiment(
        train=Input(VocTree(root, train, masks="class" if train == "train" else "class_aug"), crop, batch),
        evals={"val": Input(VocTree(root, "val", masks="class"), whole, batch)},
        backbone=dilated(backbone_of(init) or ResNet(depth), 8),
        head=head,
        optimizer=optimizer,
        transfer=Transfer(init, freeze=("backbone",) if freeze else (),
                          freeze_statistics=recipe == "paper" and init is not None),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=max(1, steps // 5),
    )
