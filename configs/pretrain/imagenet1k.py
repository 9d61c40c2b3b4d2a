"""Train on ImageNet (1.28 million images, 1,000 classes): the paper's baseline, and the smallest of its data sizes.

    tfds build imagenet2012 --file_format=array_record        # needs TensorFlow: pip install 'big_vision_lite[tf]'
    bvl train configs/pretrain/imagenet1k.py --workdir gs://BUCKET/run

The paper reports a top-1 of 77.5 for ResNet-101 from scratch (unverified). ``v2=true`` also evaluates on ImageNet-V2.
docs/reproducing.md estimates the time; not run here.
"""

from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.pretraining import curated_by, imagenet_pretraining


def get_config(subset: int | None = None, precision: float = 1.0, exclude: str | None = None, v2: bool = False,
               data_dir: str | None = None, depth: int = 101, epochs: float = 90.0, batch_size: int = 1024,
               seed: int = 0) -> Experiment:
    """
    Args:
      subset: learn from this many images, with the classes in their proportions; larger subsets contain smaller ones.
      precision: share of the labels to keep; the others are replaced by wrong ones.
      exclude: file of image ids to leave out, as `bvl data duplicates` writes it.
      v2: also evaluate on ImageNet-V2.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      depth: layers of the ResNet.
      epochs: length of the run in passes over the images.
      batch_size: images per step.
      seed: seed of initialization, data order and augmentation.
    """
    evals = {"validation": Tfds("imagenet2012", "validation", data_dir)}
    if v2:
        evals["imagenet_v2"] = Tfds("imagenet_v2/matched-frequency", "test", data_dir)
    curate = curated_by(exclude=exclude, subset=subset, stratified=True, precision=precision)
    return imagenet_pretraining(Tfds("imagenet2012", "train", data_dir), evals, curate=curate, depth=depth,
                                steps=round(epochs * (subset or 1_281_167) / batch_size), batch_size=batch_size,
                                seed=seed)
