"""Fine-tune a pretrained network to a TFDS data set, by BiT's HyperRule.

    bvl train configs/transfer/tfds.py:name=cifar100,init=runs/pretrained --workdir runs/tuned
    bvl train configs/transfer/tfds.py:name=cifar10,init=runs/pretrained,subset=5000
    bvl train configs/transfer/tfds.py:name=food101,images=75750,init=runs/pretrained

Knows the sizes of the sets in `recipes.CATALOGUE`; for others give ``images``. Not run here.
"""

from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import CATALOGUE, Known, tfds_finetuning


def get_config(name: str, init: str | None = None, images: int | None = None, train: str | None = None,
               evaluate: str | None = None, pixels: int | None = None, subset: int | None = None, depth: int = 50,
               batch_size: int = 512, freeze: bool = False, data_dir: str | None = None, seed: int = 0) -> Experiment:
    """
    Args:
      init: a run, a file of weights, hf:REPO or a URL.
      images: to learn from, where the data set is not known here.
      train, evaluate: splits, as TFDS writes them.
      pixels: height times width of a typical image.
      subset: learn from so many images, with the classes in their proportions.
      depth: of the backbone, where ``init`` is not a run.
    """
    known = CATALOGUE.get(name.partition(":")[0], Known(10_000, 500 * 375, "train", "validation"))
    said = {"images": images, "train": train, "evaluate": evaluate, "pixels": pixels}
    known = known._replace(**{k: v for k, v in said.items() if v})
    return tfds_finetuning(name, known, init=init, depth=depth, batch_size=batch_size, freeze=freeze,
                           data_dir=data_dir, subset=subset, seed=seed)
