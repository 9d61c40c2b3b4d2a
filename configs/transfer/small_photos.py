"""How much a pretrained backbone saves on a folder of small photos: fine-tuned against trained from scratch.

    bvl train configs/transfer/small_photos.py:root=/cifar10-jpeg,split=test,images=500,steps=200 --workdir runs/scratch
    bvl train configs/transfer/small_photos.py:root=/cifar10-jpeg,split=test,images=500,steps=200,init=runs/emoji \\
        --workdir runs/tuned

The same recipe for both, so that all that differs is where the backbone starts. Photos are enlarged to 64 pixels, the
size of the scenes of configs/pretrain/emoji.py. README has the measured figures.
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import PadCrop, Squash
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.recipes import curated_by
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, split: str = "val", images: int | None = None, steps: int = 1600, init: str | None = None,
               freeze: bool = False, size: int = 64, batch_size: int = 64, learning_rate: float = 0.05,
               seed: int = 0) -> Experiment:
    """
    Args:
      split: what to score on.
      images: learn from so many, classes in their proportions; None for all.
      init: a run to start from; None: from scratch.
      freeze: learn the head alone.
      size: pixels of the network's input.
    """
    return Experiment(
        train=Input(ImageFolder(root, "train"), PadCrop(size, pad=size // 8), batch_size, on_bad_image="mask",
                    curate=curated_by(subset=images, stratified=True)),
        evals={split: Input(ImageFolder(root, split), Squash(size), 2 * batch_size, on_bad_image="mask")},
        backbone=backbone_of(init) or ResNet(10, width=0.5, norm=BatchNorm(group=min(32, batch_size))),
        head=Classification("softmax", label_smoothing=0.1),
        optimizer=SGD(learning_rate, schedule=Cosine(warmup=steps // 20), weight_decay=5e-4, nesterov=True),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
