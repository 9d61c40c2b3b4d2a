"""Pretrain on Open Images (9 million images, many labels each) with the paper's recipe for JFT-300M.

    bvl train configs/pretrain/open_images.py:root=/data/open_images --workdir gs://BUCKET/run

The open dataset most like JFT-300M: labels from machines and people, any number per image, a machine's with a
confidence. ``root`` is the folder of Open Images V7's files of image-level labels and of its images by id, see
`OpenImages`. Without it TFDS's open_images_v4 is read, which is the 1.7 million images that have boxes:

    tfds build open_images_v4 --file_format=array_record      # needs TensorFlow: pip install 'big_vision_lite[tf]'

A machine's labels of at least ``confidence`` count; evaluation uses labels that people verified. Not run here.
"""

from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.pretraining import curated_by, jft_pretraining, open_images


def get_config(root: str | None = None, confidence: float = 0.5, subset: int | None = None, precision: float = 1.0,
               vocabulary: int | None = None, hierarchy: str | None = None, exclude: str | None = None,
               data_dir: str | None = None, depth: int = 101, steps: int | None = None, batch_size: int = 1024,
               seed: int = 0) -> Experiment:
    """
    Args:
      root: folder of Open Images V7; None: TFDS's open_images_v4.
      confidence: from 0 to 1; a lower one gives more labels and more wrong ones.
      subset: learn from this many images; larger subsets contain smaller ones.
      precision: share of the labels to keep; the others are replaced by wrong ones.
      vocabulary: learn this many classes, the most frequent ones.
      hierarchy: the set's bbox_labels_600_hierarchy.json, or a csv file of child,parent: each label then counts as its
        ancestors too.
      exclude: file of image ids to leave out, as `bvl data duplicates` writes it.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      depth: layers of the ResNet.
      steps: length of the run; None: as many images as the paper's run on JFT-300M saw, 1,152 million.
      batch_size: images per step.
      seed: seed of initialization, data order and augmentation.
    """
    train, evals = open_images(root, confidence, data_dir)
    curate = curated_by(exclude=exclude, hierarchy=hierarchy, vocabulary=vocabulary, subset=subset, precision=precision)
    return jft_pretraining(train, evals, curate=curate, depth=depth, steps=steps, batch_size=batch_size, seed=seed)
