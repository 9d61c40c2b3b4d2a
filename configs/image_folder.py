"""Train a ResNet from scratch on any folder of photos with one folder per class.

    bvl train configs/image_folder.py:root=/photos

Layout: /photos/train/CLASS/*.jpg and /photos/val/CLASS/*.jpg, or just /photos/CLASS/*.jpg, of which a tenth is held out
for evaluation. Small images (size up to 40 pixels) are padded and cropped, larger ones cropped at random scales.
docs/results/small_runs.md has measured values for CIFAR-10.
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import CentreCrop, RandomCropPadded, RandomResizedCrop, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine


def get_config(root: str, eval_split: str = "val", size: int = 64, depth: int = 10, width: float = 0.5,
               steps: int = 4000, batch_size: int = 128, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of the photos.
      eval_split: split to evaluate on: val, or test if there is no val.
      size: input size of the network in pixels.
      depth: layers of the ResNet.
      width: width factor of the ResNet; 1 is the standard width.
      steps: length of the run.
      batch_size: images per step.
      seed: seed of initialization, data order and augmentation.
    """
    small = size <= 40
    crop = RandomCropPadded(size, pad=size // 8) if small else RandomResizedCrop(size, area=(0.2, 1.0))
    view = Resize(size) if small else CentreCrop(size, resize=round(size * 8 / 7))
    return Experiment(
        train=Input(ImageFolder(root, "train"), crop, batch_size, on_bad_image="mask"),
        evals={eval_split: Input(ImageFolder(root, eval_split), view, batch_size, on_bad_image="mask")},
        backbone=ResNet(depth, width=width, norm=BatchNorm(group=min(64, batch_size)),
                        stem="half" if small else "imagenet"),
        head=Classification("softmax", label_smoothing=0.1),
        optimizer=SGD(0.2 * batch_size / 256, schedule=Cosine(warmup=0.05), weight_decay=5e-4, nesterov=True),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=1 / 5,
    )
