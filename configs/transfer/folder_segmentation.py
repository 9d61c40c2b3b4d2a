"""Semantic segmentation of your own images: photos in images/, masks of the same names in masks/.

    bvl train configs/transfer/folder_segmentation.py:root=/photos,init=runs/pretrained --workdir runs/masks
    bvl predict runs/masks /photos/new/*.jpg

A mask is a PNG of its image's size whose values are class numbers: 0 background, 255 undecided; classes.txt in the
folder names the others, a line each. Splits are folders (images/train, ...), lists (train.txt) or a tenth held out; see
`MaskFolder` for other layouts. DeepLabV3+ at output stride 16; ``freeze=true`` learns the decoder alone.

What to expect depends on the data. From the starting points of the literature DeepLabV3+ reaches 75.9 (ResNet-50) and
76.8 (101) mIoU on VOC 2012 (mmseg's model zoo, at stride 8 and 512 pixels). Not measured yet.
"""

from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.joint_transforms import Fit, ScaleJitter
from big_vision_lite.data.mask_folder import MaskFolder
from big_vision_lite.data.pipeline import Input
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Poly
from big_vision_lite.training.transfer import Transfer


def get_config(root: str, init: str | None = None, split: str = "val", size: int = 512, depth: int = 50,
               channels: int = 256, steps: int = 4000, batch_size: int = 16, freeze: bool = False,
               seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL.
      split: what to score on.
      size: pixels of the network's input; images are shrunk or enlarged to fit.
      depth: of the backbone, where ``init`` is not a run.
      channels: of the decoder.
    """
    return Experiment(
        train=Input(MaskFolder(root, "train"), ScaleJitter(size, of="fit", photometric=True), batch_size),
        evals={split: Input(MaskFolder(root, split), Fit(size, size, ((size, size),), random=False), batch_size)},
        backbone=dilated(whole_batch(backbone_of(init) or ResNet(depth)), 16),
        head=Segmentation(DeepLabV3Plus(channels=channels, low_level_channels=max(channels // 5, 8)), size),
        optimizer=SGD(0.01 * batch_size / 16, Poly(warmup=steps // 40), weight_decay=1e-4),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=20,
        eval_every=max(1, steps // 5),
    )
