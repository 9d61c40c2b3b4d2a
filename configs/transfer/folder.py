"""Fine-tune a pretrained network to your own folder of photos, by BiT's HyperRule.

    bvl train configs/transfer/folder.py:root=/photos,init=runs/pretrained,images=5000 --workdir runs/tuned

The backbone is that of the run that ``init`` names; a file of weights needs ``depth`` (and --backbone.pixels for
torchvision's). ``freeze=true`` learns the head alone. Not measured yet.
"""

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import bit_finetuning


def get_config(root: str, images: int, init: str | None = None, split: str = "val", pixels: int = 500 * 375,
               depth: int = 50, batch_size: int = 128, freeze: bool = False, seed: int = 0) -> Experiment:
    """
    Args:
      images: about how many there are to learn from; the length of the run depends on it.
      init: a run, a file of weights, hf:REPO or a URL.
      split: what to score on.
      pixels: height times width of a typical image.
      depth: of the backbone, where ``init`` is not a run.
    """
    return bit_finetuning(
        ImageFolder(root, "train"), {split: ImageFolder(root, split)}, images, init=init, pixels=pixels,
        backbone=backbone_of(init) or ResNet(depth), batch_size=batch_size, freeze=freeze, seed=seed)
