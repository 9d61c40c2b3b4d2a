"""The paper's tables as studies: pretrain, then transfer.

    bvl study configs/paper/tables.py:table=coco --workdir runs/coco --list    # the runs and their cost, in miniature
    bvl study configs/paper/tables.py:table=coco --workdir runs/coco           # run them on two cores
    bvl report runs/coco --table coco                                          # the paper's table beside ours

| table | pretraining | transfer | the paper reports (after ImageNet, JFT-300M, both) |
|---|---|---|---|
| imagenet | none; the large set | ImageNet by BiT's HyperRule (the paper's is unknown) | 77.5, 79.2 top-1, unverified |
| coco | ImageNet; the large set; one after the other | COCO detection | AP 34.3, 36.7, 37.4 |
| voc07 | the same | VOC 2007 detection, from trainval of 2007 and 2012 | AP50 76.3, 81.4, 81.3 |
| voc12 | the same | VOC 2012 segmentation by DeepLab-ASPP-L | mIoU 73.6, 75.3, 76.5 |
| data_size | 1/30, 1/10, 1/3 and all of the large set, nested | COCO, fine-tuned and frozen | a line in log(images) |
| training_length | a third, two thirds and all of the steps | COCO | AP 35.0, 36.1, 36.8 |
| classes | few or all classes, on a tenth of the large set | COCO | AP 31.2, 31.9, unverified |
| capacity | ImageNet; the large set; with three depths each | COCO | deeper networks gain more |

``scale=full`` is the paper's recipe, days on a TPU or GPU pod; it was not run here. ``scale=mini`` takes generated
scenes and ResNets of depth 10 (capacity: 10, 18 and 34 for 50, 101 and 152). docs/reproducing.md has times and costs,
docs/results/paper_tables.md the results in miniature.

data_size: the paper's sizes are 10, 30, 100 and 300 million. Full passes four times over each subset (what the paper
did is unknown); mini takes the same steps for each. training_length: 12, 24 and 36 million steps of 32 images, 4/3, 8/3
and 4 passes over JFT-300M. Here each is a run with its own schedule; as far as is known, the paper took checkpoints of
one run. classes: the paper kept 941 classes that match ImageNet's, or all 18,291, on 30 million images; here the most
frequent ones. COCO is evaluated on val2017 or ``minival``; test-dev is scored by COCO's server.
"""

from collections.abc import Iterator
from typing import Any, Literal

from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.paper import (
    MINI_LARGE,
    OPEN_IMAGES,
    Scale,
    detection,
    imagenet_finetuning,
    pretrain_imagenet,
    pretrain_large,
    segmentation,
)
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Factor, Run, Study


def get_study(table: Literal["imagenet", "coco", "voc07", "voc12", "data_size", "training_length", "classes",
                             "capacity"],
              scale: Scale = "mini", seeds: int = 1, name: str = "open_images_v4", images: int = OPEN_IMAGES,
              root: str | None = None, minival: str | None = None, data_dir: str | None = None) -> Study:
    """
    Args:
      table: table of the paper, see above.
      scale: full, the paper's recipe; or mini, generated scenes.
      seeds: number of seeds, from 0 on.
      name: name of the large set in TFDS.
      images: size of its train split.
      root: COCO's own files (None: TFDS's); for voc07 one VOC tree with the images of 2007 and 2012, whose names do not
        clash, and trainval0712.txt and test2007.txt in ImageSets/Main (None: VOC0712); for voc12 a VOC tree with
        SegmentationClassAug and ImageSets/Segmentation/train_aug.txt (None: VOC2012).
      minival: file of COCO image ids to evaluate on, one per line; needs ``root``.
      data_dir: folder of TFDS's datasets; None: TFDS's default.
    """
    large = {"name": name, "images": images, "data_dir": data_dir}

    def transfer(pretraining: Run, freeze: bool = False) -> Experiment:
        shared = {"depth": pretraining.experiment.backbone.depth, "seed": pretraining.experiment.seed}
        init = RUN_PREFIX + pretraining.name
        if table == "imagenet":
            return imagenet_finetuning(scale, init, data_dir=data_dir, **shared)
        if table == "voc12":
            return segmentation(scale, init, root=root, **shared)
        return detection(scale, init, "voc07" if table == "voc07" else "coco", root=root, minival=minival,
                         freeze=freeze, data_dir=data_dir, **shared)

    if minival and table in ("imagenet", "voc07", "voc12"):
        raise UserError(f"minival={minival} lists images of COCO, which table={table} does not use; leave it out")
    task = {"imagenet": "tuned", "voc07": "voc07", "voc12": "voc12", "data_size": "tuned"}.get(table, "coco")
    in_table = {"table": table, "scale": scale}
    runs = []
    for seed in range(seeds):
        if table == "imagenet":
            scratch = (pretrain_imagenet(scale, seed=seed, data_dir=data_dir) if scale == "full"
                       else imagenet_finetuning(scale, None, seed=seed))
            runs.append(Run(f"random,seed={seed}", scratch, factors={**in_table, "row": "random", "stage": "transfer"}))
        for row, pretraining, factors in _pretrainings(table, scale, seed, large):
            runs += [pretraining, Run(f"{task},{pretraining.name}", transfer(pretraining),
                                      factors={**in_table, "row": row, **factors})]
            if table == "data_size":
                runs.append(Run(f"frozen,{pretraining.name}", transfer(pretraining, freeze=True),
                                factors={"scale": scale}))
    return Study(f"paper_{table}", tuple(runs))


def _pretrainings(table: str, scale: Scale, seed: int,
                  large: dict[str, Any]) -> Iterator[tuple[str, Run, dict[str, Factor]]]:
    """The row of the table, the pretraining for it, and further factors of the transfer that follows."""
    total = MINI_LARGE if scale == "mini" else large["images"]
    if table == "data_size":
        for row, part in (("10M", 30), ("30M", 10), ("100M", 3), ("300M", 1)):
            subset = total // part
            experiment = pretrain_large(scale, subset=subset, seed=seed, **large)
            yield row, Run(f"images={subset},seed={seed}", experiment, factors={"images": subset}), {}
    elif table == "training_length":
        for row, thirds in (("12M", 1), ("24M", 2), ("36M", 3)):
            length = {"epochs": 4 * thirds / 3} if scale == "full" else {"steps": 300 * thirds}
            experiment = pretrain_large(scale, seed=seed, **length, **large)
            yield row, Run(f"length={row},seed={seed}", experiment, factors={"length": row}), {"length": row}
    elif table == "classes":
        for row, vocabulary in (("1K", 20 if scale == "mini" else 941), ("18K", None)):
            subset = total // 10
            experiment = pretrain_large(scale, subset=subset, vocabulary=vocabulary, seed=seed, **large)
            yield row, Run(f"classes={vocabulary or 'all'},seed={seed}", experiment, factors={"images": subset}), {}
    elif table == "capacity":
        for paper_depth, mini_depth in ((50, 10), (101, 18), (152, 34)):
            depth = mini_depth if scale == "mini" else paper_depth
            for data, experiment in (
                    ("ImageNet", pretrain_imagenet(scale, depth=depth, seed=seed, data_dir=large["data_dir"])),
                    ("300M", pretrain_large(scale, depth=depth, seed=seed, **large))):
                yield (f"ResNet-{paper_depth}, {data}", Run(f"{data},depth={depth},seed={seed}", experiment),
                       {"init": data})
    elif table == "imagenet":
        yield "300M", Run(f"large,seed={seed}", pretrain_large(scale, seed=seed, **large)), {}
    else:
        imagenet = Run(f"imagenet,seed={seed}", pretrain_imagenet(scale, seed=seed, data_dir=large["data_dir"]))
        both = pretrain_large(scale, seed=seed, init=RUN_PREFIX + imagenet.name, **large)
        yield "ImageNet", imagenet, {"init": "ImageNet"}
        yield "300M", Run(f"large,seed={seed}", pretrain_large(scale, seed=seed, **large)), {"init": "300M"}
        yield "ImageNet+300M", Run(f"imagenet+large,seed={seed}", both), {"init": "ImageNet+300M"}
