"""Train a ResNet from scratch on any folder of photos, a folder a class.

    bvl train configs/image_folder.py:root=/photos

Layout: /photos/train/CLASS/*.jpg and /photos/val/CLASS/*.jpg, or /photos/CLASS/*.jpg, of which a tenth is then held
out. Small pictures (size up to 40 pixels) are padded and cropped, larger ones cropped at random scales.
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import CentreCrop, InceptionCrop, PadCrop, Squash
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine


def get_config(root: str, split: str = "val", size: int = 64, depth: int = 10, width: float = 0.5,
               steps: int = 4000, batch_size: int = 128, seed: int = 0) -> Experiment:
    """
    Args:
      split: what to score on: val, or test where there is no val.
      size: pixels of the network's input.
    """
    small = size <= 40
    train = PadCrop(size, pad=size // 8) if small else InceptionCrop(size, area=(0.2, 1.0))
    evaluate = Squash(size) if small else CentreCrop(size, resize=round(size * 8 / 7))
    return Experiment(
        train=Input(ImageFolder(root, "train"), train, batch_size, on_bad_image="mask"),
        evals={split: Input(ImageFolder(root, split), evaluate, batch_size, on_bad_image="mask")},
        backbone=ResNet(depth, width=width, norm=BatchNorm(group=min(64, batch_size)),
                        stem="half" if small else "imagenet"),
        head=Classification("softmax", label_smoothing=0.1),
        optimizer=SGD(0.2 * batch_size / 256, schedule=Cosine(warmup=steps // 20), weight_decay=5e-4, nesterov=True),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=max(1, steps // 5),
    )
