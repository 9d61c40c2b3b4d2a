"""Train a classifier from scratch on any prepared TFDS dataset, such as cifar10, coco/2017 or voc/2012.

    bvl train configs/tfds.py:name=cifar10,eval_split=test,size=32
    bvl train configs/tfds.py:name=coco/2017,eval_split=validation,size=224,multi_label=true

If the dataset has boxes, an image's labels are the classes of its objects.
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.transforms.image import CentreCrop, RandomCropPadded, RandomResizedCrop, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine


def get_config(name: str, train_split: str = "train", eval_split: str = "validation", size: int = 64,
               multi_label: bool = False, data_dir: str | None = None, depth: int = 18, steps: int = 10_000,
               batch_size: int = 128, seed: int = 0) -> Experiment:
    """
    Args:
      name: name of the dataset in TFDS.
      train_split: split to learn from, or a part of one: train[:10%].
      eval_split: split to evaluate on.
      size: input size of the network in pixels.
      multi_label: whether an image has any number of labels.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      depth: layers of the ResNet.
      steps: length of the run.
      batch_size: images per step.
      seed: seed of initialization, data order and augmentation.
    """
    small = size <= 40
    crop = RandomCropPadded(size, pad=size // 8) if small else RandomResizedCrop(size)
    view = Resize(size) if small else CentreCrop(size, resize=round(size * 8 / 7))
    return Experiment(
        train=Input(Tfds(name, train_split, data_dir), crop, batch_size),
        evals={eval_split: Input(Tfds(name, eval_split, data_dir), view, batch_size)},
        backbone=ResNet(depth, norm=BatchNorm(group=min(64, batch_size)), stem="small" if small else "imagenet"),
        head=Classification("sigmoid") if multi_label else Classification("softmax", label_smoothing=0.1),
        optimizer=SGD(0.1 * batch_size / 256, schedule=Cosine(warmup=0.05), weight_decay=5e-4, nesterov=True),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=1 / 10,
    )
