"""Pretrain on Open Images V4 (9 million images, many labels each) with the paper's recipe for JFT-300M.

    tfds build open_images_v4 --file_format=array_record      # needs TensorFlow: pip install 'big_vision_lite[tf]'
    bvl train configs/pretrain/open_images.py --workdir gs://BUCKET/run

The open set most like JFT-300M: labels from the web and from machines, any number an image, each with a confidence.
What is above ``confidence`` counts as given; evaluation asks for labels that people verified (confidence 10). Not run
here.
"""

from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import curated_by, jft_pretraining


def get_config(confidence: float = 5, images: int = 9_011_219, subset: int | None = None, precision: float = 1.0,
               vocabulary: int | None = None, exclude: str | None = None, data_dir: str | None = None, depth: int = 101,
               epochs: float = 30.0, batch_size: int = 1024, seed: int = 0) -> Experiment:
    """
    Args:
      confidence: from 0 to 10; lower gives more labels and more wrong ones.
      images: in the train split.
      subset: images to learn from; smaller sets are contained in larger ones.
      precision: share of the labels that are to be right, beside the noise that is there.
      vocabulary: so many classes, the most frequent ones.
      exclude: file of ids, as `bvl data duplicates` writes it.
    """
    def source(split: str, least: float) -> Tfds:
        return Tfds("open_images_v4", split, data_dir, label_key="objects_trainable", min_confidence=least)

    steps = curated_by(exclude=exclude, vocabulary=vocabulary, subset=subset, precision=precision)
    return jft_pretraining(source("train", confidence), {"validation": source("validation", 10)}, subset or images,
                           curate=steps, depth=depth, epochs=epochs, batch_size=batch_size, seed=seed)
