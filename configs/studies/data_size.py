"""Performance against the number of pretraining images, the paper's main figure, on generated scenes.

    bvl study configs/studies/data_size.py --workdir runs/data_size                          # 12 minutes on two cores
    bvl study configs/studies/data_size.py:seeds=3,depths=(10,18) --workdir runs/data_size   # continues the above

Five nested subsets over two decades, each followed by few-shot probes, fine-tuning, and a head on frozen features. By
default every run takes the same number of steps, so runs differ only in how often they see new scenes instead of known
ones: the curve of data alone, at equal compute. ``epochs=4`` asks the paper's question instead, equal passes over each
subset: compute grows with the data, and the smallest subsets get few steps. docs/results/fixed_steps.md has the result.
"""

from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.errors import UserError
from big_vision_lite.recipes.miniature import scenes_pretraining, transfers
from big_vision_lite.scaling.studies.study import Run, Study


def get_study(subsets: tuple[int, ...] = (500, 1_600, 5_000, 16_000, 50_000), depths: tuple[int, ...] = (10,),
              seeds: int = 1, steps: int | None = None, epochs: float | None = None, batch_size: int = 128,
              width: float = 0.25, study_name: str = "data_size") -> Study:
    """
    Args:
      subsets: numbers of scenes to pretrain on, nested; the largest number is generated.
      depths: layers of the ResNets.
      seeds: number of seeds, from 0 on; each has its own subsets, initialization and data order.
      steps: length of each pretraining; None: 1,200 steps, if no epochs are given.
      epochs: length in passes over each subset, instead of steps.
      batch_size: images per step of pretraining.
      width: width factor of the ResNets; 1 is the standard width.
      study_name: name of the study, to tell studies apart in one report.
    """
    if steps is not None and epochs is not None:
        raise UserError(f"data_size: steps={steps} and epochs={epochs:g} are both given; give one of them")
    if epochs is None:
        steps = 1_200 if steps is None else steps
    runs = []
    for depth in depths:
        for seed in range(seeds):
            for subset in subsets:
                length = steps if epochs is None else max(1, round(epochs * subset / batch_size))
                experiment = scenes_pretraining(steps=length, curate=(NestedSubset(subset, seed=seed),), depth=depth,
                                                width=width, images=max(subsets), batch_size=batch_size, seed=seed)
                pretraining = Run(f"images={subset},depth={depth},seed={seed}", experiment, factors={"images": subset})
                runs += [pretraining, *transfers(pretraining)]
    return Study(study_name, tuple(runs))
