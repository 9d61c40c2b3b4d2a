"""Fine-tune a pretrained network to your own folder of photos, by BiT's HyperRule.

    bvl train configs/transfer/folder.py:root=/photos,init=runs/pretrained,images=5000 --workdir runs/tuned

The backbone is that of the run ``init``; a file of weights needs ``depth`` (and --backbone.pixels for torchvision's).
``freeze=true`` trains only the head. 500 to 20,000 steps, depending on the number of images. Not measured yet.
"""

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.recipes.transfer import bit_finetuning


def get_config(root: str, images: int, subset: int | None = None, init: str | None = None, eval_split: str = "val",
               pixels: int = 500 * 375, depth: int = 50, steps: int | None = None, batch_size: int = 128,
               freeze: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of the photos, one folder per class, as for configs/image_folder.py.
      images: size of the train split, roughly; it decides the length of the run.
      subset: learn from this many photos, with the classes in their proportions; None: all.
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      eval_split: split to evaluate on.
      pixels: height times width of a typical image.
      depth: layers of the backbone, if ``init`` is not a run.
      steps: length of the run; None: the HyperRule's.
      batch_size: images per step.
      freeze: train only the head.
      seed: seed of initialization, data order and augmentation.
    """
    return bit_finetuning(
        ImageFolder(root, "train"), {eval_split: ImageFolder(root, eval_split)}, subset or images, init=init,
        pixels=pixels, backbone=backbone_of(init) or ResNet(depth), steps=steps, batch_size=batch_size, freeze=freeze,
        seed=seed, curate=curated_by(subset=subset, stratified=True))
