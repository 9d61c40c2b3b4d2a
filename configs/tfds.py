"""Train a classifier on any prepared TFDS data set, such as cifar10, coco/2017 or voc/2012.

    bvl train configs/tfds.py:name=cifar10,evaluate=test,size=32
    bvl train configs/tfds.py:name=coco/2017,evaluate=validation,size=224,multi_label=true

Of data with boxes, the classes of the objects are an image's labels.
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.data.transforms import CentreCrop, InceptionCrop, PadCrop, Squash
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine


def get_config(name: str, train: str = "train", evaluate: str = "validation", size: int = 64, multi_label: bool = False,
               data_dir: str | None = None, depth: int = 18, steps: int = 10_000, batch_size: int = 128,
               seed: int = 0) -> Experiment:
    """
    Args:
      train: split to learn from, also a part of one: train[:10%].
      evaluate: split to score on.
      size: pixels of the network's input.
      multi_label: whether an image has any number of labels.
    """
    small = size <= 40
    crop = PadCrop(size, pad=size // 8) if small else InceptionCrop(size)
    view = Squash(size) if small else CentreCrop(size, resize=round(size * 8 / 7))
    return Experiment(
        train=Input(Tfds(name, train, data_dir), crop, batch_size),
        evals={evaluate: Input(Tfds(name, evaluate, data_dir), view, batch_size)},
        backbone=ResNet(depth, norm=BatchNorm(group=min(64, batch_size)), stem="small" if small else "imagenet"),
        head=Classification("sigmoid") if multi_label else Classification("softmax", label_smoothing=0.1),
        optimizer=SGD(0.1 * batch_size / 256, schedule=Cosine(warmup=steps // 20), weight_decay=5e-4, nesterov=True),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=max(1, steps // 10),
    )
