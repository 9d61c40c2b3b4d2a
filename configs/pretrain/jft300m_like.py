"""Pretrain as the paper did on JFT-300M, on any large set of images with noisy labels.

    bvl train configs/pretrain/jft300m_like.py:name=my_images --workdir gs://BUCKET/run

JFT-300M (300 million images, 18,291 classes) was never public; README lists open stand-ins. ``name`` is a TFDS dataset
prepared as ArrayRecord or TFRecord; `bvl data prepare` makes one from folders, csv, COCO json or tar files. The paper
trained for 36 million steps of 32 images: two months on 50 K80 GPUs. Not run at that size here.
"""

from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.pretraining import curated_by, jft_pretraining


def get_config(name: str, subset: int | None = None, precision: float = 1.0,
               vocabulary: int | None = None, hierarchy: str | None = None, exclude: str | None = None,
               data_dir: str | None = None, depth: int = 101, steps: int | None = None,
               batch_size: int = 1024, seed: int = 0) -> Experiment:
    """
    Args:
      name: name of the dataset in TFDS; the last 1 % of its train split is held out for evaluation.
      subset: learn from this many images, 10, 30 and 100 million in the paper; larger subsets contain smaller ones.
      precision: share of the labels to keep; the others are replaced by wrong ones.
      vocabulary: learn this many classes, the most frequent ones.
      hierarchy: csv file of child,parent: each label then counts as its ancestors too.
      exclude: file of image ids to leave out, as `bvl data duplicates` writes it.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      depth: layers of the ResNet.
      steps: length of the run; None: as many images as the paper's run on JFT-300M saw, 1,152 million.
      batch_size: images per step.
      seed: seed of initialization, data order and augmentation.
    """
    curate = curated_by(exclude=exclude, hierarchy=hierarchy, vocabulary=vocabulary, subset=subset, precision=precision)
    train, held_out = (Tfds(name, split, data_dir) for split in ("train[:99%]", "train[99%:]"))
    return jft_pretraining(train, {"held_out": held_out}, curate=curate, depth=depth, steps=steps,
                           batch_size=batch_size, seed=seed)
