"""VTAB-1k (Zhai et al. 2019): fine-tune to one of its tasks with 1,000 images, by BiT's HyperRule (500 steps).

    bvl train configs/transfer/vtab.py:task=dtd,init=runs/pretrained --workdir runs/vtab-dtd

Learns from 800 training and 200 validation images and is evaluated on the whole test split, as the benchmark's final
results are. BiT-M R101x3 has a mean of 72.65 over 19 tasks (reported). Here are the 16 tasks whose label is stored with
the image; those of Clevr (count, distance) and KITTI are computed from objects and are missing. Not run here.
"""

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.transfer import TfdsInfo, tfds_finetuning

PHOTO, FIRST, SECOND = 500 * 375, "train[:800]+validation[:200]", "train[:800]+train[-200:]"
"""The 1,000 images; SECOND: of datasets without a validation split (the benchmark takes the end of training)."""
TASKS = {
    "caltech101": TfdsInfo(1000, 300 * 250, SECOND, "test"),
    "cifar100": TfdsInfo(1000, 32 * 32, SECOND, "test"),
    "dtd": TfdsInfo(1000, 500 * 500, FIRST, "test"),
    "oxford_flowers102": TfdsInfo(1000, 500 * 500, FIRST, "test"),
    "oxford_iiit_pet": TfdsInfo(1000, PHOTO, SECOND, "test"),
    "sun397": TfdsInfo(1000, 1024 * 768, FIRST, "test", "sun397/tfds"),
    "svhn": TfdsInfo(1000, 32 * 32, SECOND, "test", "svhn_cropped"),
    "patch_camelyon": TfdsInfo(1000, 96 * 96, FIRST, "test"),
    "eurosat": TfdsInfo(1000, 64 * 64, "train[:800]+train[16200:16400]", "train[21600:]", "eurosat/rgb"),
    "resisc45": TfdsInfo(1000, 256 * 256, "train[:800]+train[18900:19100]", "train[25200:]"),
    "diabetic_retinopathy": TfdsInfo(1000, 1000 * 1000, FIRST, "test", "diabetic_retinopathy_detection/btgraham-300"),
    "dmlab": TfdsInfo(1000, 360 * 480, FIRST, "test"),
    "smallnorb_azimuth": TfdsInfo(1000, 96 * 96, SECOND, "test", "smallnorb", "label_azimuth"),
    "smallnorb_elevation": TfdsInfo(1000, 96 * 96, SECOND, "test", "smallnorb", "label_elevation"),
    "dsprites_x": TfdsInfo(1000, 64 * 64, "train[:800]+train[589824:590024]", "train[663552:]", "dsprites",
                           "label_x_position"),
    "dsprites_orientation": TfdsInfo(1000, 64 * 64, "train[:800]+train[589824:590024]", "train[663552:]", "dsprites",
                                    "label_orientation"),
}
"""Tasks by name. Unlike the benchmark, the two of dSprites keep all their values instead of 16 bins."""


def get_config(task: str, init: str | None = None, depth: int = 50, steps: int | None = None, batch_size: int = 512,
               freeze: bool = False, data_dir: str | None = None, seed: int = 0) -> Experiment:
    """
    Args:
      task: one of `TASKS`.
      init: a run, a file of weights, hf:REPO or a URL; None: from scratch.
      depth: layers of the backbone, if ``init`` is not a run.
      steps: length of the run; None: the HyperRule's.
      batch_size: images per step.
      freeze: train only the head.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
      seed: seed of initialization, data order and augmentation.
    """
    if task not in TASKS:
        raise UserError(f"VTAB has no task {task!r} here" + nearest(task, TASKS))
    return tfds_finetuning(task, TASKS[task], init=init, depth=depth, steps=steps, batch_size=batch_size, freeze=freeze,
                           data_dir=data_dir, seed=seed)
