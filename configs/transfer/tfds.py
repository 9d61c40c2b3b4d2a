"""Fine-tune a pretrained network to a TFDS dataset, by BiT's HyperRule.

    bvl train configs/transfer/tfds.py:name=cifar10,init=runs/pretrained --workdir runs/tuned
    bvl train configs/transfer/tfds.py:name=oxford_flowers102,init=runs/pretrained
    bvl train configs/transfer/tfds.py:name=oxford_iiit_pet,init=runs/pretrained,subset=1000
    bvl train configs/transfer/tfds.py:name=food101,images=75750,init=runs/pretrained

The sizes and splits of imagenet2012, cifar10, cifar100, oxford_iiit_pet and oxford_flowers102 are known; for other data
sets give ``images``. 500 to 20,000 steps, depending on the number of images. Not run here.
"""

from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.transfer import CATALOGUE, TfdsInfo, tfds_finetuning


def get_config(name: str, init: str | None = None, images: int | None = None, subset: int | None = None,
               train_split: str | None = None, eval_split: str | None = None, pixels: int | None = None,
               depth: int = 50, steps: int | None = None, batch_size: int = 512, freeze: bool = False,
               data_dir: str | None = None, seed: int = 0) -> Experiment:
    """
    Args:
      name: name of the dataset in TFDS.
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      images: size of the train split, where it is not known here.
      subset: learn from this many images, with the classes in their proportions; None: all.
      train_split: split to learn from, as TFDS writes it; None: the usual one.
      eval_split: split to evaluate on; None: the usual one.
      pixels: height times width of a typical image.
      depth: layers of the backbone, if ``init`` is not a run.
      steps: length of the run; None: the HyperRule's.
      batch_size: images per step.
      freeze: train only the head.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      seed: seed of initialization, data order and augmentation.
    """
    info = CATALOGUE.get(name.partition(":")[0], TfdsInfo(10_000, 500 * 375, "train", "validation"))
    given = {"images": images, "train_split": train_split, "eval_split": eval_split, "pixels": pixels}
    info = info._replace(**{key: value for key, value in given.items() if value})
    return tfds_finetuning(name, info, init=init, depth=depth, steps=steps, batch_size=batch_size, freeze=freeze,
                           data_dir=data_dir, subset=subset, seed=seed)
