"""Detection against the number of pretraining images, with all layers tuned and with frozen features: the main figure.

    bvl study configs/paper/data_size.py --workdir runs/paper_data_size
    bvl study configs/paper/data_size.py:scale=full,name=my_300m,images=300000000 --workdir DIR --emit slurm
    bvl report runs/paper_data_size

The paper's sizes are 10, 30, 100 and 300 million of JFT-300M; here 1/30, 1/10, 1/3 and all of the set, nested. Every
subset is passed over four times (what the paper did for subsets is unknown); mini takes the same steps for each.
Full scale was not run here.
"""

from big_vision_lite.scaling.paper_recipes import MINI_LARGE, OPEN_IMAGES, Scale, detection, placed, pretrain_large
from big_vision_lite.scaling.study import OF_A_RUN, Run, Study


def get_study(scale: Scale = "mini", seeds: int = 1, name: str = "open_images_v4", images: int = OPEN_IMAGES,
              root: str | None = None, minival: str | None = None, data_dir: str | None = None) -> Study:
    """
    Args:
      scale: full, the paper's recipe; or mini, generated scenes.
      name: the large set, as TFDS names it.
      images: how many its train split has.
      root, minival: COCO's files and a list of images to score on, as of `recipes.coco`.
      data_dir: where TFDS's data sets are.
    """
    large = {"name": name, "images": images, "data_dir": data_dir}
    total = MINI_LARGE if scale == "mini" else images
    runs = []
    for seed in range(seeds):
        for row, part in (("10M", 30), ("30M", 10), ("100M", 3), ("300M", 1)):
            count = total // part
            pretraining = Run(f"images={count},seed={seed}", pretrain_large(scale, subset=count, seed=seed, **large),
                              factors={"images": count})
            runs.append(pretraining)
            for kind in ("tuned", "frozen"):
                experiment = detection(scale, OF_A_RUN + pretraining.name, "coco", root=root, minival=minival,
                                       freeze=kind == "frozen", seed=seed, data_dir=data_dir)
                factors = placed("data_size", row, scale) if kind == "tuned" else {"scale": scale}
                runs.append(Run(f"{kind},{pretraining.name}", experiment, factors=factors))
    return Study("paper_data_size", tuple(runs))
