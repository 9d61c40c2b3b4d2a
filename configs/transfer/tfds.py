"""Fine-tune a pretrained network to a TFDS data set, by BiT's HyperRule.

    bvl train configs/transfer/tfds.py:name=imagenet2012,init=runs/pretrained --workdir runs/tuned
    bvl train configs/transfer/tfds.py:name=cifar10,init=runs/pretrained,subset=5000

Knows the sizes of imagenet2012, cifar10, cifar100, oxford_iiit_pet and oxford_flowers102; for others give ``images``,
``train`` and ``evaluate``. BiT-M R50x1 reaches 80.7 top-1 on ImageNet by this rule with mixup (reported). Not run here.
"""

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import bit_finetuning, curated_by

KNOWN = {
    "imagenet2012": (1_281_167, 500 * 375, "train", "validation"),
    "cifar10": (50_000, 32 * 32, "train", "test"),
    "cifar100": (50_000, 32 * 32, "train", "test"),
    "oxford_iiit_pet": (3_680, 500 * 375, "train", "test"),
    "oxford_flowers102": (2_040, 500 * 500, "train+validation", "test"),
}
"""Training images, pixels an image, splits (as TFDS has them)."""


def get_config(name: str, init: str | None = None, images: int | None = None, train: str | None = None,
               evaluate: str | None = None, subset: int | None = None, depth: int = 50, batch_size: int = 512,
               freeze: bool = False, data_dir: str | None = None, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL.
      images: to learn from, where the data set is not known here.
      subset: learn from so many images, with the classes in their proportions.
      depth: of the backbone, where ``init`` is not a run.
    """
    count, pixels, *splits = KNOWN.get(name.partition(":")[0], (images or 10_000, 500 * 375, "train", "validation"))
    curate = curated_by(subset=subset, stratified=True)
    return bit_finetuning(
        Tfds(name, train or splits[0], data_dir), {"evaluation": Tfds(name, evaluate or splits[1], data_dir)},
        subset or images or count, init=init, pixels=pixels, backbone=backbone_of(init) or ResNet(depth),
        batch_size=batch_size, freeze=freeze, curate=curate, seed=seed)
