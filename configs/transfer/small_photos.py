"""What a pretrained backbone is worth on a folder of small photos: fine-tuned against trained from scratch.

    bvl train configs/transfer/small_photos.py:root=/cifar10,eval_split=test,subset=500,steps=200 --workdir runs/scratch
    bvl train configs/transfer/small_photos.py:root=/cifar10,eval_split=test,subset=500,steps=200,init=runs/emoji \\
        --workdir runs/tuned

Both use the same recipe, so only the backbone's starting point differs. Photos are enlarged to 64 pixels, the size of
the scenes of configs/pretrain/emoji.py. docs/results/small_runs.md has the measured values and times.
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, eval_split: str = "val", subset: int | None = None, steps: int = 1600,
               init: str | None = None, freeze: bool = False, size: int = 64, batch_size: int = 64,
               learning_rate: float = 0.05, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of the photos, one folder per class, as for configs/image_folder.py.
      eval_split: split to evaluate on.
      subset: learn from this many photos, with the classes in their proportions; None: all.
      steps: length of the run.
      init: a run to start from; None: from scratch.
      freeze: train only the head.
      size: width and height of the network's input in pixels.
      batch_size: images per step.
      learning_rate: peak rate.
      seed: seed of initialization, data order and augmentation.
    """
    return Experiment(
        train=Input(ImageFolder(root, "train"), RandomCropPadded(size, pad=size // 8), batch_size, on_bad_image="mask",
                    curate=curated_by(subset=subset, stratified=True)),
        evals={eval_split: Input(ImageFolder(root, eval_split), Resize(size), 2 * batch_size, on_bad_image="mask")},
        backbone=backbone_of(init) or ResNet(10, width=0.5, norm=BatchNorm(group=min(32, batch_size))),
        head=Classification("softmax", label_smoothing=0.1),
        optimizer=SGD(learning_rate, schedule=Cosine(warmup=0.05), weight_decay=5e-4, nesterov=True),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
