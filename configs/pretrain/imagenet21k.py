"""Pretrain on ImageNet-21k (14 million images, 21,841 classes) with the paper's recipe for JFT-300M.

    bvl train configs/pretrain/imagenet21k.py:path=/data/imagenet21k --workdir gs://BUCKET/run

``path`` is the folder of the public tar files, one a class, which are read as they are. BiT-M was trained on these
images for 90 epochs (Kolesnikov et al., 2020); under 30 a large network learns less than from ImageNet. Not run here.
"""

from big_vision_lite.data.tar_images import TarImages
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import curated_by, jft_pretraining


def get_config(path: str, images: int = 14_000_000, subset: int | None = None, precision: float = 1.0,
               vocabulary: int | None = None, hierarchy: str | None = None, exclude: str | None = None,
               depth: int = 101, epochs: float = 90.0, batch_size: int = 1024, seed: int = 0) -> Experiment:
    """
    Args:
      images: in the train split.
      subset: images to learn from; smaller sets are contained in larger ones.
      precision: share of the labels that are to be right.
      vocabulary: so many classes, the most frequent ones.
      hierarchy: file of child,parent by WordNet ids: each label then counts as its ancestors too.
      exclude: file of ids, as `bvl data duplicates` writes it.
    """
    steps = curated_by(exclude=exclude, hierarchy=hierarchy, vocabulary=vocabulary, subset=subset,
                       precision=precision)
    return jft_pretraining(TarImages(path, "train", held_out=0.005),
                           {"validation": TarImages(path, "validation", held_out=0.005)}, subset or images,
                           curate=steps, depth=depth, epochs=epochs, batch_size=batch_size, seed=seed)
