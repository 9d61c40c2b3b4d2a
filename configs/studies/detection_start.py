"""How a detector starts from pretraining on few and on many noisy scenes: rate x steps x scenes, and the rate of the
head alone.

    bvl study configs/studies/detection_start.py --workdir runs/start

A short detection run measures how fast a fresh head learns from the features it is given. Scaling the features by c is
the same as scaling the head's rate by c^2 (SGD, a linear layer), so ``head_rates`` also says what the size of the
features does. docs/results/dense_transfer.md has the result.
"""

import dataclasses

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.data.curation.steps import LabelNoise, NestedSubset, curation
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.recipes.miniature import new_classes, scenes_pretraining, small_resnet
from big_vision_lite.recipes.paper_mini import SMALL_C4
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Run, Study
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.transfer import Transfer

SIZE = 64


def get_study(subsets: tuple[int, ...] = (666, 20_000), rates: tuple[float, ...] = (0.02, 0.06),
              lengths: tuple[int, ...] = (300, 1_200), head_rates: tuple[float, ...] = (1.0,),
              fixed_statistics: bool = True, seeds: int = 3, study_name: str = "detection_start") -> Study:
    """
    Args:
      subsets: numbers of scenes with 20 % wrong labels to pretrain on, nested, each for 600 steps of 128.
      rates: peaks of the learning rate of detection.
      lengths: steps of detection, of 16 scenes.
      head_rates: factors on the rate of the detector without the backbone.
      fixed_statistics: the backbone's BatchNorm keeps the statistics of pretraining, else it takes each batch's.
      seeds: number of seeds, from 0 on; each has its own subsets, initialization and data order.
      study_name: name of the study, to tell studies apart in one report.
    """
    runs = []
    for seed in range(seeds):
        for count in subsets:
            curate = curation(subset=NestedSubset(count, seed=seed), noise=LabelNoise(0.8))
            pretraining = Run(f"images={count},seed={seed}",
                              scenes_pretraining(steps=600, curate=curate, images=max(subsets), seed=seed,
                                                 probes=False), factors={"images": count})
            runs.append(pretraining)
            for rate in rates:
                for steps in lengths:
                    for factor in head_rates:
                        factors = {"rate": rate, "head_rate": factor,
                                   "statistics": "fixed" if fixed_statistics else "batch"}
                        name = f"rate={rate:g},head={factor:g},steps={steps}" + ",batch" * (not fixed_statistics)
                        experiment = _detection(RUN_PREFIX + pretraining.name, rate, factor, steps, fixed_statistics,
                                                seed)
                        runs.append(Run(f"{name},{pretraining.name}", experiment, factors=factors))
    return Study(study_name, tuple(runs))


def _detection(init: str, rate: float, head_rate: float, length: int, fixed_statistics: bool, seed: int) -> Experiment:
    """Scenes of three classes that pretraining did not have, by the paper's detector in small."""
    def scenes(split: str, images: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, images, size=SIZE, classes=new_classes(3), objects=(1, 3), zipf=0.0)

    multipliers = {} if head_rate == 1 else {"rpn": head_rate, "predictor": head_rate}
    return Experiment(
        train=Input(scenes("train", 1_000), ResizeToFit(SIZE, SIZE), 16),
        evals={"test": Input(scenes("test", 1_000), ResizeToFit(SIZE, SIZE, random=False), 16)},
        backbone=dataclasses.replace(small_resnet(), norm=BatchNorm()),
        head=FasterRCNN(SMALL_C4, max_boxes=16),
        optimizer=SGD(rate, schedule=Cosine(warmup=0.1), weight_decay=1e-4, grad_clip_norm=10.0),
        transfer=Transfer(init, freeze_batchnorm=fixed_statistics, lr_multipliers=multipliers),
        steps=length,
        seed=seed,
        log_every=50,
    )
