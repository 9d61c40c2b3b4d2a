"""The question in eight minutes on two cores: do more images help, before and after transfer?

    bvl study configs/studies/quickstart.py --workdir runs/study
    bvl report runs/study

Three pretrainings on 200, 2,000 and 20,000 generated scenes, nested, for the same number of steps; each is then asked
for classes it never saw, by few-shot probes and by fine-tuning on 1,000 scenes of them.
"""

from big_vision_lite.data.curation import NestedSubset
from big_vision_lite.scaling.recipes import scenes_pretraining, transfers
from big_vision_lite.scaling.study import Run, Study


def get_study(sizes: tuple[int, ...] = (200, 2_000, 20_000), steps: int = 300, seed: int = 0) -> Study:
    """
    Args:
      sizes: scenes to pretrain on.
      steps: of pretraining, of 128 scenes each, whatever the size.
    """
    runs = []
    for images in sizes:
        experiment = scenes_pretraining(steps=steps, curate=(NestedSubset(images, seed=seed),), scenes=max(sizes),
                                        seed=seed)
        pretraining = Run(f"images={images}", experiment, factors={"images": images})
        runs += [pretraining, *transfers(pretraining, ("tuned",))]
    return Study("quickstart", tuple(runs))
