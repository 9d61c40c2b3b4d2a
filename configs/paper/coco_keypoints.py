"""The paper's table of human pose as a study: pretrain, then keypoints.

    bvl study configs/paper/coco_keypoints.py --workdir runs/keypoints --list    # the runs and their cost, in miniature
    bvl study configs/paper/coco_keypoints.py --workdir runs/keypoints           # run them on two cores
    bvl report runs/keypoints --table keypoints                                  # the paper's table beside ours

The paper reports AP 62.4 after ImageNet, 64.8 after JFT-300M and 64.4 after one and then the other, on test-dev
(unverified), with the pipeline of Papandreou et al. 2017. ``scale=full`` is that recipe as far as it is known
(`recipes/keypoints.py` lists what differs); its scores are on val2017, with the annotated boxes unless ``boxes`` names
a detector's. ``scale=mini`` is keypoints of emoji that occur in neither pretraining set, with `recipes/paper_mini.py`'s
pretraining. Neither was run yet.
"""

from big_vision_lite.data.sources.emoji_scenes import vocabulary
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.keypoints import GRMI_DEVIATIONS, coco_persons, emoji_top_down, top_down
from big_vision_lite.recipes.miniature import small_resnet
from big_vision_lite.recipes.paper import Full, Scale
from big_vision_lite.recipes.paper_mini import TASKS, Miniature
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, transfer_steps: int = 600, root: str = "coco",
              boxes: str | None = None, data_dir: str | None = None) -> Study:
    """
    Args:
      scale: full, the paper's recipe; or mini, generated scenes.
      seeds: number of seeds, from 0 on.
      transfer_steps: for mini: length of each transfer.
      root: for full: COCO's own files.
      boxes: for full: a detector's results for val2017, in COCO's format; None: annotated boxes.
      data_dir: for full: folder of TFDS's datasets; None: TFDS's default.
    """
    recipes = Full(data_dir=data_dir) if scale == "full" else Miniature()

    def keypoints(pretraining: Run, seed: int) -> Experiment:
        init = RUN_PREFIX + pretraining.name
        if scale == "full":
            train, evals = coco_persons(root, boxes)
            return top_down(train, evals, recipe="grmi", init=init, seed=seed)
        first, last = TASKS["coco"]
        return emoji_top_down(init=init, images=1_000, style="twemoji", classes=vocabulary(last).names[first:], size=64,
                              steps=transfer_steps, backbone=small_resnet(), seed=seed)

    runs = []
    for seed in range(seeds):
        imagenet = Run(f"imagenet,seed={seed}", recipes.pretrain_imagenet(seed=seed))
        large = Run(f"large,seed={seed}", recipes.pretrain_large(seed=seed))
        both = Run(f"imagenet+large,seed={seed}",
                   recipes.pretrain_large(seed=seed, init=RUN_PREFIX + imagenet.name))
        for row, pretraining in (("ImageNet", imagenet), ("300M", large), ("ImageNet+300M", both)):
            factors = {"table": "keypoints", "scale": scale, "row": row, "init": row}
            runs += [pretraining, Run(f"keypoints,{pretraining.name}", keypoints(pretraining, seed), factors=factors)]
    deviations = (*recipes.deviations, *(GRMI_DEVIATIONS if scale == "full" else ()))
    return Study("paper_coco_keypoints", tuple(runs), deviations)
