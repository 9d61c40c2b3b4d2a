"""The commands that take a finished run: ``bvl evaluate``, ``bvl probe``, ``bvl predict``, ``bvl pseudolabel``."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from big_vision_lite.commands.arguments import Checkpoint, Imports, Run, Source, checkpoint_of, parse
from big_vision_lite.errors import UserError

if TYPE_CHECKING:
    from big_vision_lite.training.best import CheckpointChoice


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint again: print the metrics, and write them and a picture to RUN/evaluations."""

    run: Run
    split: str | None = None
    """Another split of the evaluations' source; by default the config's."""
    source: Source | None = None
    """Another source, with the first evaluation's transform; for test-dev: image_info_test-dev2017.json:images=..."""
    submission: Path | None = None
    """File for the first evaluation's (or --source's) detections or keypoints, as COCO's server takes them; needs no
    annotations."""
    robustness: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND=FOLDER ...")] = ()
    """Score robustness sets instead: imagenet-a, -r, -sketch, -v2, -real or objectnet, as in objectnet=/objectnet-1.0;
    docs/data.md has their layouts."""
    boxes: Path | None = None
    """For keypoints: a detector's results (its --submission), whose boxes are used instead of the annotated ones."""
    checkpoint: Checkpoint = "last"
    imports: Imports = ()


def evaluate(arguments: list[str]) -> int:
    options = parse(Evaluate, arguments, "bvl evaluate")
    checkpoint = checkpoint_of(options.checkpoint)
    from big_vision_lite.commands.setup import set_up_for

    set_up_for(options.run, options.imports)
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.runs.evaluate import evaluate

    if options.robustness:
        print(json.dumps(_robustness(options, checkpoint), indent=2))
        return 0
    if options.source is not None and options.split is not None:
        raise UserError("--source and --split exclude each other; give the split with the source: SOURCE:split=NAME")
    sources = None
    if options.source is not None:
        sources = {Path(options.source.partition(":")[0]).stem or "source": source_of(options.source)}
    metrics = evaluate(options.run, options.split, checkpoint, options.imports, sources, options.submission,
                       options.boxes)
    print(json.dumps(metrics, indent=2))
    return 0


def _robustness(options: Evaluate, checkpoint: CheckpointChoice) -> dict[str, float | None]:
    """Raises: UserError for other options beside --robustness, and as `evaluate_robustness`."""
    from big_vision_lite.runs.robustness import evaluate_robustness

    for name in ("split", "source", "submission", "boxes"):
        if getattr(options, name) is not None:
            raise UserError(f"--robustness and --{name} exclude each other; leave one out")
    sets = dict[str, str]()
    for text in options.robustness:
        kind, equals, folder = text.partition("=")
        if not equals or kind in sets:
            raise UserError(f"--robustness {text!r}; expected KIND=FOLDER, each kind once, such as "
                            "imagenet-a=/data/imagenet-a")
        sets[kind] = folder
    return evaluate_robustness(options.run, sets, checkpoint, options.imports)


@dataclasses.dataclass(frozen=True)
class ProbeRun:
    """Probe frozen features: few-shot ridge regression, nearest neighbours, a linear probe. Saved in RUN/probes.

    Without --train and --test: the probes of the run's config."""

    run: Run
    train: Source | None = None
    """Images to learn from, one label each; see `bvl help`."""
    test: Source | None = None
    """Images to score."""
    kinds: tuple[Literal["few_shot", "neighbours", "linear"], ...] = ("few_shot", "neighbours", "linear")
    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Training images per class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the few-shot samples."""
    checkpoint: Checkpoint = "last"
    random: bool = False
    """Probe an untrained network of the same config, as a baseline."""
    imports: Imports = ()


def probe(arguments: list[str]) -> int:
    options = parse(ProbeRun, arguments, "bvl probe")
    checkpoint = checkpoint_of(options.checkpoint)
    from big_vision_lite.commands.setup import set_up_for
    from big_vision_lite.commands.sources import source_of

    experiment = set_up_for(options.run, options.imports)
    from big_vision_lite.runs.probe import probe_run, tabulate
    from big_vision_lite.training.probe import Probe

    if (options.train is None) != (options.test is None):
        raise UserError("--train and --test come together: where to learn from, and what to score")
    if options.train is None:
        probes = experiment.probes
        if not probes:
            raise UserError(f"the config of {str(options.run)!r} has no probes; give --train SOURCE and --test SOURCE")
    else:
        view = experiment.view  # for the transform of evaluation
        train, test = (dataclasses.replace(view, source=source_of(spec), curate=())
                       for spec in (options.train, options.test))
        probes = {"": Probe(train, test, options.kinds, options.shots, options.seeds)}
    print(tabulate(probe_run(options.run, probes, checkpoint, options.random, options.imports)))
    return 0


@dataclasses.dataclass(frozen=True)
class Predict:
    """Predict for images: print JSON, one line per image, and draw the predictions into the photos at their own size.

    Segmentation also writes masks, PNG files whose values are classes. Files that cannot be read are named at the end.
    """

    run: Run
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER|PATTERN ...")]
    """Image files, folders of them, or patterns in quotes, such as 'photos/**/*.jpg'."""
    out: Path | None = None
    """Folder for pictures and masks; by default RUN/predictions."""
    boxes: Path | None = None
    """For keypoints: a file with what `bvl predict DETECTOR` printed for these images; by default each image is one
    box."""
    score: float | None = None
    """Leave out labels and detections with a lower score; by default all are printed, and boxes drawn from 0.3 on."""
    checkpoint: Checkpoint = "last"
    imports: Imports = ()


def predict(arguments: list[str]) -> int:
    options = parse(Predict, arguments, "bvl predict")
    checkpoint = checkpoint_of(options.checkpoint)
    from big_vision_lite.commands.setup import set_up_for

    set_up_for(options.run, options.imports)
    from big_vision_lite.runs.predict import predict

    out = options.out or options.run / "predictions"
    began, times = time.perf_counter(), []
    try:
        for answer in predict(options.run, options.images, out, checkpoint, options.imports, options.score,
                              options.boxes):
            print(json.dumps(answer), flush=True)
            times.append(time.perf_counter())
    finally:
        if times:
            rest = f", {len(times) / (times[-1] - began):.1f} images/s with the start" if times[1:] else ""
            print(f"{len(times):,} images in {times[-1] - began:.1f} s{rest}; pictures: {out}", file=sys.stderr)
    return 0


@dataclasses.dataclass(frozen=True)
class PseudoLabel:
    """Label images by a run, to learn from them: a csv file for the source PseudoLabels, and a json file beside it.

    Images that the run was trained on keep their labels. Where the source has labels, the new ones are compared with
    them."""

    run: Run
    source: Source
    """Images to label; see `bvl help`."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.csv")]
    """The file to write."""
    threshold: float = 0.0
    """Least probability of a label."""
    per_class: int | None = None
    """At most so many images per class, the most confident; by default all."""
    top_k: int = 5
    """Classes per image whose probabilities are kept, for soft labels."""
    checkpoint: Checkpoint = "last"
    imports: Imports = ()


def pseudolabel(arguments: list[str]) -> int:
    options = parse(PseudoLabel, arguments, "bvl pseudolabel")
    checkpoint = checkpoint_of(options.checkpoint)
    if options.out.suffix != ".csv":
        raise UserError(f"--out {str(options.out)!r}: expected a name that ends in .csv")
    from big_vision_lite.commands.setup import set_up_for

    set_up_for(options.run, options.imports)
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.runs.pseudolabel import pseudolabel

    how = pseudolabel(options.run, source_of(options.source), options.out, options.threshold, options.per_class,
                      options.top_k, checkpoint, options.imports)
    print(f"{options.out}: {how.labelled:,} of {how.images:,} images got labels, and {how.given:,} keep their own"
          + (f"; {how.unreadable:,} cannot be read" if how.unreadable else ""))
    if how.precision is not None and how.recall is not None:
        print(f"precision {how.precision:.4f}, recall {how.recall:.4f}, against the labels of the source")
    return 0
