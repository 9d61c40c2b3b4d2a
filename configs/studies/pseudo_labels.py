"""What are photos without labels worth? Teachers that learn from few labels, students that learn from what they say.

    bvl study configs/studies/pseudo_labels.py:root=/photos --workdir runs/pseudo
    bvl pseudolabel runs/pseudo/round=0,labelled=450,seed=0 --source /photos:split=train --out FILE.csv
    bvl study configs/studies/pseudo_labels.py:root=/photos,rounds=1,labels=runs/pseudo --workdir runs/pseudo

The first line trains teachers, and runs with all labels. The second labels all photos of train/ by one teacher, and
says how right that is; FILE.csv is labels.csv in the folder of the teacher, and each teacher needs one. The third then
trains the first students, from random weights, on the teacher's photos with their own labels and all others with
pseudo-labels. They are the teachers of rounds=2. Runs named "only" have the photos of a teacher and the length of a
student.
"""

import dataclasses

from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.pseudo_labels import PseudoLabels
from big_vision_lite.errors import UserError
from big_vision_lite.recipes.photos import photos_pretraining
from big_vision_lite.scaling.studies.study import Run, Study


def get_study(root: str, labelled: tuple[int, ...] = (450, 4_500), rounds: int = 0, labels: str | None = None,
              min_confidence: float = 0.0, soft: bool = True, seen: int = 112_000, teacher_seen: int = 28_000,
              depth: int = 10, width: float = 0.25, eval_split: str = "val", seeds: int = 3,
              study_name: str = "pseudo_labels") -> Study:
    """
    Args:
      root: folder of the photos, with a folder per split and in it one per class.
      labelled: numbers of photos whose labels are known, nested.
      rounds: generations of students.
      labels: folder of the teachers' runs, each with labels.csv; needed from the first round on.
      min_confidence: leave out photos that the teacher is less sure of.
      soft: students learn the teacher's probabilities instead of its best guess.
      seen: photos seen by each student, and by each run that it is compared with.
      teacher_seen: photos seen by each teacher.
      depth: layers of the ResNet.
      width: width factor of the ResNet; 1 is the standard width.
      eval_split: split to evaluate on.
      seeds: number of seeds, from 0 on; each has its own labelled photos, initialization and data order.
      study_name: name of the study, to tell studies apart in one report.
    """
    if rounds and labels is None:
        raise UserError(f"pseudo_labels: rounds={rounds} without labels; expected the folder of the teachers' runs, "
                        "such as labels=runs/pseudo")
    runs = []

    def run(name: str, count: int | None, length: int, seed: int, source: PseudoLabels | None = None,
            after: tuple[str, ...] = (), **factors: str | int) -> str:
        curate = (NestedSubset(count, seed=seed, stratified=True),) if count and not source else ()
        experiment = photos_pretraining(root, steps=max(1, length // 64), curate=curate, depth=depth, width=width,
                                        seed=seed, evals=(eval_split,))
        if source:
            experiment = dataclasses.replace(
                experiment, train=dataclasses.replace(experiment.train, source=source),
                head=dataclasses.replace(experiment.head, soft_labels=soft))
        runs.append(Run(name, experiment, after=after, factors={"labelled": count, **factors}))
        return name

    for seed in range(seeds):
        run(f"all,seed={seed}", None, seen, seed, method="all labels")
        for count in labelled:
            run(f"only,labelled={count},seed={seed}", count, seen, seed, method="labelled only")
            teacher = run(f"round=0,labelled={count},seed={seed}", count, teacher_seen, seed, method="teacher", round=0)
            for number in range(1, rounds + 1):
                source = PseudoLabels(ImageFolder(root, "train"), f"{labels}/{teacher}/labels.csv", min_confidence)
                teacher = run(f"round={number},labelled={count},seed={seed}", count, seen, seed, source, (teacher,),
                              method="student", round=number)
    return Study(study_name, tuple(runs))
