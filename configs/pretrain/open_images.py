"""Pretrain on Open Images V4 (9 million images, many labels each) with the paper's recipe for JFT-300M.

    tfds build open_images_v4 --file_format=array_record      # needs TensorFlow: pip install 'big_vision_lite[tf]'
    bvl train configs/pretrain/open_images.py --workdir gs://BUCKET/run

The open dataset most like JFT-300M: labels from the web and from machines, any number per image, each with a
confidence. Labels of at least ``confidence`` count as given; evaluation uses labels that people verified (confidence
10). Not run here.
"""

from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.pretraining import curated_by, jft_pretraining


def get_config(confidence: float = 5, images: int = 9_011_219, subset: int | None = None, precision: float = 1.0,
               vocabulary: int | None = None, exclude: str | None = None, data_dir: str | None = None, depth: int = 101,
               epochs: float = 30.0, batch_size: int = 1024, seed: int = 0) -> Experiment:
    """
    Args:
      confidence: from 0 to 10; a lower one gives more labels and more wrong ones.
      images: size of the train split.
      subset: learn from this many images; larger subsets contain smaller ones.
      precision: share of the labels to keep; the others are replaced by wrong ones.
      vocabulary: learn this many classes, the most frequent ones.
      exclude: file of image ids to leave out, as `bvl data duplicates` writes it.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      depth: layers of the ResNet.
      epochs: length of the run in passes over the images.
      batch_size: images per step.
      seed: seed of initialization, data order and augmentation.
    """
    def source(split: str, min_confidence: float) -> Tfds:
        return Tfds("open_images_v4", split, data_dir, label_key="objects_trainable", min_confidence=min_confidence)

    curate = curated_by(exclude=exclude, vocabulary=vocabulary, subset=subset, precision=precision)
    return jft_pretraining(source("train", confidence), {"validation": source("validation", 10)}, subset or images,
                           curate=curate, depth=depth, epochs=epochs, batch_size=batch_size, seed=seed)
