"""Pretrain on ImageNet-21k with the paper's recipe for JFT-300M.

    bvl train configs/pretrain/imagenet21k.py:root=/data/imagenet21k --workdir gs://BUCKET/run

``root`` is the folder of the public tar files, one per class, which are read as they are: of the release of fall 2011
(14.2 million images in 21,841 classes), or of winter 2021 (19,167 classes), the one that its site offers now. BiT-M was
trained on the first for 90 epochs (Kolesnikov et al., 2020), 1,280 million images; in fewer than 30 a large network
learns less than from ImageNet. Not run here.
"""

from big_vision_lite.data.sources.tar_images import TarImages
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.pretraining import curated_by, jft_pretraining


def get_config(root: str, subset: int | None = None, precision: float = 1.0,
               vocabulary: int | None = None, hierarchy: str | None = None, exclude: str | None = None,
               depth: int = 101, steps: int | None = None, batch_size: int = 1024, seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of the tar files, or one tar file of them.
      subset: learn from this many images; larger subsets contain smaller ones.
      precision: share of the labels to keep; the others are replaced by wrong ones.
      vocabulary: learn this many classes, the most frequent ones.
      hierarchy: csv file of child,parent by WordNet ids: each label then counts as its ancestors too.
      exclude: file of image ids to leave out, as `bvl data duplicates` writes it.
      depth: layers of the ResNet.
      steps: length of the run; None: as many images as the paper's run on JFT-300M saw, 1,152 million.
      batch_size: images per step.
      seed: seed of initialization, data order and augmentation.
    """
    curate = curated_by(exclude=exclude, hierarchy=hierarchy, vocabulary=vocabulary, subset=subset, precision=precision)
    train, validation = (TarImages(root, split, held_out=0.005) for split in ("train", "validation"))
    return jft_pretraining(train, {"validation": validation}, curate=curate, depth=depth, steps=steps,
                           batch_size=batch_size, seed=seed)
