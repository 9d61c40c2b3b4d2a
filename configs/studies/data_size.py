"""Performance against the number of pretraining images, the paper's main figure, on generated scenes.

    bvl study configs/studies/data_size.py --workdir runs/data_size                          # 12 minutes on two cores
    bvl study configs/studies/data_size.py:seeds=3,depths=(10,18) --workdir runs/data_size   # goes on from the above

Five nested subsets over two decades. By default every run takes the same number of steps: the only thing that differs
is how often it sees new scenes instead of known ones, so the curve is of data alone, at equal compute. ``epochs=4``
asks the paper's question instead, equal passes over each subset: there compute grows with the data, and the smallest
sets get few steps. Each pretraining is followed by few-shot probes, fine-tuning, and a head on frozen features.
"""

from big_vision_lite.data.curation import NestedSubset
from big_vision_lite.scaling.recipes import scenes_pretraining, transfers
from big_vision_lite.scaling.study import Run, Study


def get_study(sizes: tuple[int, ...] = (500, 1_600, 5_000, 16_000, 50_000), depths: tuple[int, ...] = (10,),
              seeds: int = 1, steps: int = 1_200, epochs: float | None = None, batch_size: int = 128,
              width: float = 0.25, name: str = "data_size") -> Study:
    """
    Args:
      sizes: scenes to pretrain on.
      seeds: 0 to below this; each chooses other subsets, starts and orders.
      steps: of each pretraining.
      epochs: instead of ``steps``, passes over each subset.
      width: of the networks; 1 is the usual one.
      name: of the study, to be told from others in one report.
    """
    runs = []
    for depth in depths:
        for seed in range(seeds):
            for images in sizes:
                length = steps if epochs is None else max(1, round(epochs * images / batch_size))
                experiment = scenes_pretraining(steps=length, curate=(NestedSubset(images, seed=seed),), depth=depth,
                                                width=width, scenes=max(sizes), batch_size=batch_size, seed=seed)
                pretraining = Run(f"images={images},depth={depth},seed={seed}", experiment, factors={"images": images})
                runs += [pretraining, *transfers(pretraining)]
    return Study(name, tuple(runs))
