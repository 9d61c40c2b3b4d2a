"""A check against the world: ResNet-18 on CIFAR-100 by a published recipe.

    bvl train configs/cifar100_resnet18.py:root=/cifar100
    bvl train configs/cifar100_resnet18.py:root=/cifar100,epochs=20 --train.resident device    # shortened, on a GPU

Published: 22.46 % test error (top-1 0.7754), the mean of 5 runs; DeVries and Taylor, "Improved Regularization of
Convolutional Neural Networks with Cutout" (2017), arXiv:1708.04552 and https://github.com/uoguelph-mlrg/Cutout, without
Cutout. 200 epochs in batches of 128, SGD with Nesterov momentum 0.9, rate 0.1, a fifth of it after epochs 60, 120 and
160, weight decay 5e-4 on all parameters, crops padded by 4 pixels, flips; a 3x3 stem of stride 1 without pooling.
Differences: batches span the epochs' boundaries, and the last layer starts at zero. The full run (78,125 steps) was not
run; six steps were, at 7 images/s on two CPU cores shared with other work.

docs/curation.md says where the images come from; /cifar100 has train/CLASS/* and test/CLASS/*.
"""

from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Step

IMAGES = 50_000


def get_config(root: str, epochs: float = 200, batch_size: int = 128, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of the photos, with all 50,000 training images in train and 10,000 in test.
      epochs: length of the run, in passes over the training images; the rate falls at the same shares of it.
      batch_size: images per step; the rate grows linearly with it.
      seed: seed of initialization, data order and augmentation.
    """
    return Experiment(
        train=Input(ImageFolder(root, "train"), RandomCropPadded(32, pad=4), batch_size, resident="host"),
        evals={"test": Input(ImageFolder(root, "test"), Resize(32), batch_size)},
        backbone=ResNet(18, stem="small", zero_last_norm=False,
                        pixels=PixelNormalization((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))),
        head=Classification("softmax"),
        optimizer=SGD(0.1 * batch_size / 128, schedule=Step(at=(0.3, 0.6, 0.8), factor=0.2), weight_decay=5e-4,
                      decay_mask="all", nesterov=True),
        steps=max(1, round(epochs * IMAGES / batch_size)),
        seed=seed,
        log_every=50,
    )
