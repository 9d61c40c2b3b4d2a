"""What pretraining is worth to boxes and masks: target scenes x pretraining scenes, against training from scratch.

    bvl study configs/studies/boxes.py --workdir runs/boxes --list
    bvl study configs/studies/boxes.py --workdir runs/boxes
    bvl study configs/studies/boxes.py:task=masks --workdir runs/masks
    bvl laws runs/boxes           # how many scenes with boxes is pretraining worth?

Pretraining learns 774 emoji of one artist with the usual labels; the target has scenes by another artist, 20 classes,
with boxes or masks. All runs of a target take the same steps. docs/results/dense_transfer.md has the result. Needs the
extra [openmoji].
"""

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.recipes.emoji import Task, emoji_pretraining, scenes_detection, scenes_segmentation
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Run, Study


def get_study(task: Task = "boxes", subsets: tuple[int, ...] = (2_000, 32_000), seen: int = 128_000,
              target_images: tuple[int, ...] = (200, 2_000), rates: tuple[float, ...] = (1e-3,), steps: int = 400,
              size: int = 64, depth: int = 10, width: float = 0.25, freeze: bool = False, seeds: int = 3,
              study_name: str = "boxes") -> Study:
    """
    Args:
      task: boxes (Faster R-CNN, scored by AP50) or masks (DeepLabV3+, scored by mIoU).
      subsets: numbers of scenes to pretrain on, nested.
      seen: scenes seen by each pretraining, with repeats.
      target_images: numbers of scenes with boxes or masks to learn from, nested.
      rates: peaks of the learning rate on the target.
      steps: length of each run on the target.
      size: width and height of all scenes and of the network's input in pixels.
      depth: layers of the ResNet.
      width: width factor of the ResNet; 1 is the standard width.
      freeze: train only the head on the target, or what was not pretrained.
      seeds: number of seeds, from 0 on; each has its own subsets, initialization and data order.
      study_name: name of the study, to tell studies apart in one report.
    """
    backbone = ResNet(depth, width=width, norm=BatchNorm(group=32))
    recipe = scenes_detection if task == "boxes" else scenes_segmentation
    runs = []
    for seed in range(seeds):
        starts: list[tuple[str, str | None, dict]] = [("scratch", None, {"images": 0})]
        for count in subsets:
            experiment = emoji_pretraining(backbone, images=max(subsets), subset=count, size=size,
                                           steps=max(1, seen // 64), probes=False, subset_seed=seed, seed=seed)
            name = f"images={count},depth={depth},seed={seed}"
            runs.append(Run(name, experiment, factors={"images": count}))
            starts.append((f"images={count}", RUN_PREFIX + name, {"images": count}))
        for label, init, factors in starts:
            for number in target_images:
                for rate in rates:
                    experiment = recipe(init, backbone=backbone, images=max(target_images), subset=number, size=size,
                                        steps=steps, rate=rate, freeze=freeze and init is not None, subset_seed=seed,
                                        seed=seed)
                    runs.append(Run(f"{label},{task},target={number},rate={rate:g},seed={seed}", experiment,
                                    factors={**factors, "target_images": number, "rate": rate, "stage": "transfer",
                                             "task": task}))
    return Study(study_name, tuple(runs))
