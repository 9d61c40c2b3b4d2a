"""Train on ImageNet (1.28 million images, 1,000 classes): the paper's baseline, and the smallest of its data sizes.

    tfds build imagenet2012 --file_format=array_record        # needs TensorFlow: pip install 'big_vision_lite[tf]'
    bvl train configs/pretrain/imagenet1k.py --workdir gs://BUCKET/run

The paper reports top-1 77.5 for ResNet-101 from scratch (unverified). Add ``v2=true`` to score on ImageNet-V2 as well.
Not run here.
"""

from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes import curated_by, imagenet_pretraining


def get_config(subset: int | None = None, precision: float = 1.0, exclude: str | None = None, v2: bool = False,
               data_dir: str | None = None, depth: int = 101, epochs: float = 90.0, batch_size: int = 1024,
               seed: int = 0) -> Experiment:
    """
    Args:
      subset: images to learn from, with the classes in their proportions; smaller sets are contained in larger ones.
      precision: share of the labels that are to be right.
      exclude: file of ids, as `bvl data duplicates` writes it.
    """
    evals = {"validation": Tfds("imagenet2012", "validation", data_dir)}
    if v2:
        evals["imagenet_v2"] = Tfds("imagenet_v2/matched-frequency", "test", data_dir)
    steps = curated_by(exclude=exclude, subset=subset, stratified=True, precision=precision)
    return imagenet_pretraining(Tfds("imagenet2012", "train", data_dir), evals, subset or 1_281_167, curate=steps,
                                depth=depth, epochs=epochs, batch_size=batch_size, seed=seed)
