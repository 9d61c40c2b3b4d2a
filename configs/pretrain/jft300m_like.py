"""Pretrain as the paper did on JFT-300M, on any large set of images with noisy labels.

    bvl train configs/pretrain/jft300m_like.py:name=my_images --workdir gs://BUCKET/run

JFT-300M (300 million images, 18,291 classes) was never public; README lists open stand-ins. ``name`` is a TFDS data set
that is prepared as ArrayRecord or TFRecord; `bvl data prepare` makes one of folders, csv, COCO json or tar files. The
paper's length is 36 million steps of 32 images, on 50 K80 GPUs for two months. Not run at that size here.
"""

from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import curated_by, jft_pretraining


def get_config(name: str, images: int = 300_000_000, subset: int | None = None, precision: float = 1.0,
               vocabulary: int | None = None, hierarchy: str | None = None, exclude: str | None = None,
               data_dir: str | None = None, depth: int = 101, epochs: float = 4.0, batch_size: int = 1024,
               seed: int = 0) -> Experiment:
    """
    Args:
      images: in the train split, of which the last 1 % is held out.
      subset: images to learn from, 10, 30 and 100 million in the paper; smaller sets are contained in larger ones.
      precision: share of the labels that are to be right, beside the noise that is there.
      vocabulary: so many classes, the most frequent ones.
      hierarchy: file of child,parent: each label then counts as its ancestors too.
      exclude: file of ids, as `bvl data duplicates` writes it.
    """
    steps = curated_by(exclude=exclude, hierarchy=hierarchy, vocabulary=vocabulary, subset=subset,
                       precision=precision)
    return jft_pretraining(
        Tfds(name, "train[:99%]", data_dir), {"held_out": Tfds(name, "train[99%:]", data_dir)}, subset or images,
        curate=steps, depth=depth, epochs=epochs, batch_size=batch_size, seed=seed)
