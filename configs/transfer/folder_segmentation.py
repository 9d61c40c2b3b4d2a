"""Semantic segmentation of your own images: photos in images/, masks of the same names in masks/.

    bvl train configs/transfer/folder_segmentation.py:root=/photos,init=runs/pretrained --workdir runs/masks
    bvl predict runs/masks /photos/new/*.jpg

A mask is a PNG of its image's size whose values are class numbers: 0 background, 255 ignored; classes.txt in the folder
names the others, one per line. Splits are folders (images/train, ...), lists (train.txt) or a tenth held out; see
`MaskFolder` for other layouts. DeepLabV3+ at output stride 16; ``freeze=true`` trains only the decoder.

What to expect depends on the data. From published weights DeepLabV3+ reaches a mIoU of 75.9 (ResNet-50) and 76.8 (101)
on VOC 2012 (mmseg's model zoo, at stride 8 and 512 pixels). Not measured yet.
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.mask_folder import MaskFolder
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Poly
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, eval_split: str = "val", size: int = 512, depth: int = 50,
               channels: int = 256, steps: int = 4000, batch_size: int = 16, freeze: bool = False,
               seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of the images, masks and classes.txt.
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      eval_split: split to evaluate on.
      size: width and height of the network's input in pixels, into which images are fitted.
      depth: layers of the backbone, if ``init`` is not a run.
      channels: channels of the decoder.
      steps: length of the run.
      batch_size: images per step.
      freeze: train only the decoder.
      seed: seed of initialization, data order and augmentation.
    """
    view = ResizeToFit(size, size, ((size, size),), random=False)
    return Experiment(
        train=Input(MaskFolder(root, "train"), ScaleJitter(size, of="fit", augment=(Photometric(),)), batch_size),
        evals={eval_split: Input(MaskFolder(root, eval_split), view, batch_size)},
        backbone=dilated(whole_batch(backbone_of(init) or ResNet(depth)), 16),
        head=Segmentation(DeepLabV3Plus(channels=channels, low_level_channels=max(channels // 5, 8)), size),
        optimizer=SGD(0.01 * batch_size / 16, Poly(warmup=0.025), weight_decay=1e-4),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=20,
        eval_every=1 / 5,
    )
