"""The commands that train and score: ``bvl train``, ``bvl evaluate``, ``bvl config``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from big_vision_lite import config as configs
from big_vision_lite.commands.arguments import Flat, load, parse, set_up_for, set_up_jax
from big_vision_lite.errors import UserError
from big_vision_lite.training.distributed import Processes, leaving_on_error
from big_vision_lite.training.watchdog import PATIENCE


@dataclasses.dataclass(frozen=True)
class Train:
    """Train, score and draw; in a folder that holds a part of the same run, go on with it."""

    experiment: Flat
    workdir: Path
    """Folder for the run's files; of several machines, on a disk that all of them see, or gs://BUCKET/FOLDER."""
    profile: str | None = None
    """Steps to profile, as FIRST:LAST, into profile/ of the workdir."""
    watchdog: float = PATIENCE
    """Seconds without a step, a batch or a save after which the run says where it hangs and ends; 0: never."""
    wandb: str | None = None
    """Project of Weights & Biases in which the figures are shown too."""
    together: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the resolved experiment as JSON."""

    experiment: Flat


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint again: prints the figures, and writes them and a picture to RUN/evaluations."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    split: str | None = None
    """Another split of the evaluations' source; by default what the config names."""
    source: str | None = None
    """Another source, seen as the first evaluation sees its own; see `bvl --help`. For COCO's test-dev:
    image_info_test-dev2017.json:images=test2017."""
    submission: Path | None = None
    """File for the detections of the first evaluation, or of ``--source``, as COCO's server takes them. The images may
    be without annotations."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules beside this package that the classes in the run's config may come from."""


def train(arguments: list[str]) -> int:
    name, experiment = load(arguments, "train")
    asked = parse(Train, arguments[1:], f"bvl train {arguments[0]}", Train(experiment, Path("runs") / name))
    set_up_jax(asked.experiment, asked.together)
    from big_vision_lite.training.loop import Stopped, train

    with leaving_on_error():
        try:
            train(asked.experiment, asked.workdir, asked.profile, asked.watchdog, asked.wandb)
        except Stopped as stop:
            print(f"bvl: {stop}", file=sys.stderr)
            return stop.code
    return 0


def evaluate(arguments: list[str]) -> int:
    asked = parse(Evaluate, arguments, "bvl evaluate")
    set_up_for(asked.run, asked.imports)
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.training.evaluate import evaluate

    if asked.source is not None and asked.split is not None:
        raise UserError("--source and --split exclude each other; give the split with the source: SOURCE:split=NAME")
    sources = None
    if asked.source is not None:
        sources = {Path(asked.source.partition(":")[0]).stem or "source": source_of(asked.source)}
    found = evaluate(asked.run, asked.split, asked.step, asked.imports, sources, asked.submission)
    print(json.dumps(found, indent=2))
    return 0


@dataclasses.dataclass(frozen=True)
class ProbeRun:
    """Ask frozen features: few-shot ridge regression, nearest neighbours, linear probe. Kept in RUN/probes.

    Without ``--train`` and ``--test``: the probes of the run's config."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    train: str | None = None
    """Source of the images to learn from, one label each; see `bvl --help`."""
    test: str | None = None
    """Source of the images to score."""
    kinds: tuple[Literal["few_shot", "neighbours", "linear"], ...] = ("few_shot", "neighbours", "linear")
    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Training images a class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Choices of shots."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    random: bool = False
    """Probe an untrained network of the same config: what the figures are to be compared with."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules beside this package that the classes in the run's config may come from."""


def probe(arguments: list[str]) -> int:
    asked = parse(ProbeRun, arguments, "bvl probe")
    from big_vision_lite.commands.sources import source_of

    experiment = set_up_for(asked.run, asked.imports)
    from big_vision_lite.training.probe import Probe, probe_run, tabulate

    if (asked.train is None) != (asked.test is None):
        raise UserError("--train and --test come together: where to learn from, and what to score")
    if asked.train is None:
        probes = experiment.probes
        if not probes:
            raise UserError(f"the config of {str(asked.run)!r} has no probes; give --train SOURCE and --test SOURCE")
    else:
        view = next(iter(experiment.evals.values()), experiment.train)  # its transform is that of evaluation
        train, test = (dataclasses.replace(view, source=source_of(spec), curate=())
                       for spec in (asked.train, asked.test))
        probes = {"": Probe(train, test, asked.kinds, asked.shots, asked.seeds)}
    print(tabulate(probe_run(asked.run, probes, asked.step, asked.random, asked.imports)))
    return 0


def config(arguments: list[str]) -> int:
    if arguments[:1] != ["show"]:
        raise UserError("expected: bvl config show CONFIG [overrides]")
    _, experiment = load(arguments[1:], "config show")
    asked = parse(Show, arguments[2:], f"bvl config show {arguments[1]}", Show(experiment))
    print(json.dumps(configs.to_json(asked.experiment), indent=2))
    return 0
