"""The paper's tables as studies: pretrain, then transfer.

    bvl study configs/paper/tables.py:table=coco --workdir runs/coco --list    # the runs and their cost, in miniature
    bvl study configs/paper/tables.py:table=coco --workdir runs/coco           # run them on two cores
    bvl report runs/coco --table coco                                          # the paper's table beside ours
    bvl study configs/paper/tables.py:table=coco,sweep=(0.003,0.01,0.03) --workdir runs/rates    # learning rates to try

| table | pretraining | transfer | the paper reports (after ImageNet, JFT-300M, both) |
|---|---|---|---|
| imagenet | none; the large set | ImageNet, all layers | 77.5, 79.2 top-1, unverified |
| coco | ImageNet; the large set; one after the other | COCO detection | AP 34.3, 36.7, 37.4 |
| voc07 | the same | VOC 2007 detection, from trainval of 2007 and 2012 | AP50 76.3, 81.4, 81.3 |
| voc12 | the same | VOC 2012 segmentation by DeepLab-ASPP-L | mIoU 73.6, 75.3, 76.5 |
| data_size | 1/30, 1/10, 1/3 and all of the large set, nested | COCO, fine-tuned and frozen | a line in log(images) |
| training_length | a third, two thirds and all of the steps | COCO | AP 35.0, 36.1, 36.8 |
| classes | few or all classes, on the same tenth of the large set | COCO | AP 31.2, 31.9, unverified |
| capacity | ImageNet; the large set; with three depths each | COCO | deeper networks gain more |

``scale=full`` is the paper's recipe, days on a TPU or GPU pod; it was not run here. ``scale=mini`` takes generated
scenes and ResNets of depth 10 (capacity: 10, 18 and 34 for 50, 101 and 152), see recipes/paper_mini.py.
docs/reproducing.md has times and costs, docs/results/paper_tables.md the results in miniature.

data_size: the paper's sizes are 10, 30, 100 and 300 million. What it trained on subsets is unknown: ``equal=steps``
gives each as many steps as all of the images have, ``equal=passes`` as many passes. training_length: 12, 24 and 36
million steps of 32 images. Here each is a run with its own schedule; as far as is known, the paper took checkpoints of
one run. classes: the images that have one of the classes that match ImageNet's, learned with these classes alone or
with all; the same images and steps for both. COCO is evaluated on val2017 or ``minival``; test-dev is scored by COCO's
server.
"""

from collections.abc import Iterator
from typing import Literal

from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.paper import Full, Scale
from big_vision_lite.recipes.paper_mini import RATES, TRANSFER_STEPS, Miniature
from big_vision_lite.scaling.studies.grid import UNTUNED
from big_vision_lite.scaling.studies.study import RUN_PREFIX, Factor, Run, Study

Table = Literal["imagenet", "coco", "voc07", "voc12", "data_size", "training_length", "classes", "capacity"]


def get_study(table: Table, scale: Scale = "mini", seeds: int = 1, equal: Literal["steps", "passes"] = "steps",
              rates: tuple[float, float] = RATES, sweep: tuple[float, ...] = (), transfer_steps: int = TRANSFER_STEPS,
              transfer_rate: float = 0.02, name: str | None = None,
              open_images: str = "open_images_v7", hierarchy: str | None = None, matching: str | None = None,
              root: str | None = None, minival: str | None = None, data_dir: str | None = None) -> Study:
    """
    Args:
      table: table of the paper, see above.
      scale: full, the paper's recipe; or mini, generated scenes.
      seeds: number of seeds, from 0 on.
      equal: what subsets of the large set have in common with all of it.
      rates: for mini: peak learning rates of pretraining on the small and on the large set.
      sweep: for mini: learning rates to try for each of the two sets: pretraining alone, scored on validation scenes.
      transfer_steps: for mini: length of each transfer.
      transfer_rate: for mini: peak learning rate of detection and segmentation.
      name: for full: name of the large set in TFDS; None: Open Images V7.
      open_images: for full: folder of Open Images V7.
      hierarchy: for full: file of child,parent for the large set's classes; None: Open Images' own, if it is that.
      matching: for full and table=classes: file with the large set's classes that match ImageNet's, one per line.
      root: for full: COCO's own files (None: TFDS's); for voc07 one VOC tree with the images of 2007 and 2012, whose
        names do not clash, and trainval0712.txt and test2007.txt in ImageSets/Main (None: VOC0712); for voc12 a VOC
        tree with SegmentationClassAug and ImageSets/Segmentation/train_aug.txt (None: VOC2012).
      minival: for full: file of COCO image ids to evaluate on, one per line; needs ``root``.
      data_dir: for full: folder of TFDS's datasets; None: TFDS's default.
    """
    if minival and table in ("imagenet", "voc07", "voc12"):
        raise UserError(f"minival={minival} lists images of COCO, which table={table} does not use; leave it out")
    if sweep and scale == "full":
        raise UserError(f"sweep={sweep} with scale=full, whose rates are the paper's; leave it out")
    if sweep:
        return Study(f"paper_{table}", tuple(_sweep(sweep)))
    full = Full(name, open_images, hierarchy, matching, root, minival, data_dir)
    recipes = full if scale == "full" else Miniature(rates, transfer_steps, transfer_rate)

    def transfer(pretraining: Run, freeze: bool = False) -> Experiment:
        shared = {"depth": pretraining.experiment.backbone.depth, "seed": pretraining.experiment.seed}
        init = RUN_PREFIX + pretraining.name
        if table == "imagenet":
            return recipes.imagenet_finetuning(init, **shared)
        if table == "voc12":
            return recipes.segmentation(init, **shared)
        return recipes.detection(init, "voc07" if table == "voc07" else "coco", freeze=freeze, **shared)

    task = {"imagenet": "tuned", "voc07": "voc07", "voc12": "voc12", "data_size": "tuned"}.get(table, "coco")
    in_table = {"table": table, "scale": scale}
    runs = []
    for seed in range(seeds):
        if table == "imagenet":
            runs.append(Run(f"random,seed={seed}", recipes.imagenet_finetuning(None, seed=seed),
                            factors={**in_table, "row": "random", "stage": "transfer"}, images=recipes.images(table)))
        for row, pretraining, factors in _pretrainings(table, recipes, equal, seed):
            runs += [pretraining, Run(f"{task},{pretraining.name}", transfer(pretraining),
                                      factors={**in_table, "row": row, **factors}, images=recipes.images(table))]
            if table == "data_size":
                runs.append(Run(f"frozen,{pretraining.name}", transfer(pretraining, freeze=True),
                                factors={"scale": scale}, images=recipes.images(table)))
    return Study(f"paper_{table}", tuple(runs), recipes.deviations)


def _pretrainings(table: Table, recipes: Full | Miniature, equal: str,
                  seed: int) -> Iterator[tuple[str, Run, dict[str, Factor]]]:
    """The row of the table, the pretraining for it, and further factors of the transfer that follows."""
    def imagenet(name: str, **fields: int) -> Run:
        return Run(f"{name},seed={seed}", recipes.pretrain_imagenet(seed=seed, **fields),
                   factors=_rate_choice(recipes, 0), images=recipes.images("imagenet"))

    def large(name: str, factors: dict[str, Factor] | None = None, part: float = 1.0, **fields) -> Run:
        if part < 1 and equal == "passes":
            fields["length"] = part
        images = recipes.images("large", part)
        count = {"images": images} if part < 1 and isinstance(recipes, Miniature) else {}
        return Run(f"{name},seed={seed}", recipes.pretrain_large(seed=seed, part=part, **fields),
                   factors={**_rate_choice(recipes, 1), **count, **(factors or {})}, images=images)

    if table == "data_size":
        for row, part in (("10M", 30), ("30M", 10), ("100M", 3), ("300M", 1)):
            yield row, large(f"part=1of{part}", part=1 / part), {}
    elif table == "training_length":
        for row, thirds in (("12M", 1), ("24M", 2), ("36M", 3)):
            yield row, large(f"length={row}", {"length": row}, length=thirds / 3), {"length": row}
    elif table == "classes":
        for row, labels in (("1K", "imagenets"), ("18K", "with_imagenets")):
            yield row, large(f"classes={row}", part=0.1, labels=labels), {}
    elif table == "capacity":
        for paper_depth in (50, 101, 152):
            depth = recipes.depth(paper_depth)
            for data, run in (("ImageNet", imagenet(f"ImageNet,depth={depth}", depth=depth)),
                              ("300M", large(f"300M,depth={depth}", depth=depth))):
                yield f"ResNet-{paper_depth}, {data}", run, {"init": data}
    elif table == "imagenet":
        yield "300M", large("large"), {}
    else:
        first = imagenet("imagenet")
        yield "ImageNet", first, {"init": "ImageNet"}
        yield "300M", large("large"), {"init": "300M"}
        yield "ImageNet+300M", large("imagenet+large", init=RUN_PREFIX + first.name), {"init": "ImageNet+300M"}


def _rate_choice(recipes: Full | Miniature, which: int) -> dict[str, Factor]:
    """Where the rate of the small (0) or large set (1) comes from, of a miniature."""
    if isinstance(recipes, Full):
        return {}
    if recipes.rates[which] != RATES[which]:
        return {"rate_choice": "given"}
    return {"rate_choice": (UNTUNED, "docs/results/surface/scenes_rates.csv")[which]}


def _sweep(rates: tuple[float, ...]) -> Iterator[Run]:
    """Pretraining on each set at each rate."""
    for rate in rates:
        recipes = Miniature((rate, rate))
        for name, experiment in (("small", recipes.pretrain_imagenet()), ("large", recipes.pretrain_large())):
            yield Run(f"{name},rate={rate:g}", experiment, factors={"set": name, "rate_choice": "swept"})
