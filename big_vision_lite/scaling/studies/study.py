"""A study: an ordered set of named runs, each an Experiment, with the factors in which they differ.

    def get_study(sizes: tuple[int, ...] = (1_000, 10_000)) -> Study:
        pretraining = [Run(f"images={n}", experiment(n), factors={"images": n}) for n in sizes]
        tuning = [Run(f"tuned,images={n}", tuned(Transfer(init=f"run:images={n}"))) for n in sizes]
        return Study("data_size", (*pretraining, *tuning))

``Transfer(init="run:NAME")`` starts from the run of that name, which is trained first; ``Branch("run:NAME", STEP)``
shares its first steps.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from big_vision_lite import config as configs
from big_vision_lite.data.curation.steps import LabelNoise
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment
from big_vision_lite.system.fields import check
from big_vision_lite.system.parse import convert, read_json
from big_vision_lite.training.workdir import has_checkpoint

RUN_PREFIX = "run:"
"""Prefix of a ``Transfer.init`` that names a run of the same study."""
RESERVED = ("configs", "figures", "jobs", "logs")
"""Folders of a study besides those of its runs."""
INHERITED = ("images", "noise", "noise_kind", "classes")
"""Factors inherited from the pretraining run: a transfer is plotted over what its pretraining saw."""

def _name(path: str | None) -> str | None:
    """The run of the study that a path names."""
    return path.removeprefix(RUN_PREFIX) if path and path.startswith(RUN_PREFIX) else None


Factor = str | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a study."""

    name: str
    """Also the name of its folder: letters, digits and ``. _ = , + -``."""
    experiment: Experiment
    after: tuple[str, ...] = ()
    """Runs that must finish first, besides the one that ``Transfer.init`` names."""
    factors: Mapping[str, Factor] = dataclasses.field(default_factory=dict)
    """What the study varies: columns of results.csv, which override those read from the config."""
    images: int | None = None
    """Published number of images that it learns from, for lists of what a study costs before there is any data."""

    def __post_init__(self) -> None:
        check(self)
        if not re.fullmatch(r"[A-Za-z0-9_=+][A-Za-z0-9._=,+-]*", self.name) or self.name in RESERVED:
            raise UserError(f"run name {self.name!r} cannot be a folder name; expected letters, digits and "
                            f". _ = , + -, not starting with . or -, and none of {', '.join(RESERVED)}")

    @property
    def start(self) -> str | None:
        """Name of the run of the study whose weights it starts from, if any."""
        return _name(self.experiment.transfer.init)

    @property
    def trunk(self) -> str | None:
        """Name of the run of the study whose first steps it shares, if any."""
        return _name(self.experiment.branch and self.experiment.branch.trunk)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the runs that must finish first."""
        return tuple(dict.fromkeys(filter(None, (*self.after, self.start, self.trunk))))


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that together answer a question."""

    name: str
    runs: tuple[Run, ...]
    deviations: tuple[str, ...] = ()
    """How its runs differ from those of the paper that it repeats; one line each."""

    def __post_init__(self) -> None:
        """Raises: UserError for two runs of one name, a missing dependency or a circular one."""
        names: dict[str, Run] = {}
        for run in self.runs:
            if run.name in names:
                differences = configs.differences(*(configs.to_json(r.experiment) for r in (names[run.name], run)))
                raise UserError(f"study {self.name!r} has two runs named {run.name!r}" + (
                    f", with different configs: {'; '.join(differences[:3])}" if differences else "")
                    + "; name each by what it varies")
            names[run.name] = run
        if not names:
            raise UserError(f"study {self.name!r} has no runs; expected at least one")
        for run in self.runs:
            for name in run.needs:
                if name not in names:
                    raise UserError(f"run {run.name!r} comes after {name!r}, which is not in study {self.name!r}"
                                    + nearest(name, names))
        self.ordered()

    def __getitem__(self, name: str) -> Run:
        return next(run for run in self.runs if run.name == name)

    def ordered(self) -> tuple[Run, ...]:
        """The runs as listed, but each after those it needs. Raises: UserError for circular dependencies."""
        done: dict[str, Run] = {}

        def visit(run: Run, path: tuple[str, ...]) -> None:
            if run.name in path:
                raise UserError(f"study {self.name!r}: runs depend on each other: "
                                + " after ".join((*path[path.index(run.name):], run.name)))
            for name in run.needs:
                visit(self[name], (*path, run.name))
            done.setdefault(run.name, run)

        for run in self.runs:
            if run.name not in done:
                visit(run, ())
        return tuple(done.values())

    def select(self, pattern: str | None) -> tuple[Run, ...]:
        """The runs whose names match a pattern such as ``*depth=18*`` and those they need, in order.

        Raises:
          UserError: no name matches.
        """
        selected = {run.name for run in self.runs if pattern is None or fnmatchcase(run.name, pattern)}
        if not selected:
            raise UserError(f"--only {pattern!r} matches no run of study {self.name!r}"
                            + nearest(str(pattern), [run.name for run in self.runs]))
        for run in reversed(self.ordered()):  # each comes before what it needs
            if run.name in selected:
                selected.update(run.needs)
        return tuple(run for run in self.ordered() if run.name in selected)

    @functools.cached_property
    def identities(self) -> dict[str, str]:
        """A hash per run, by name, of all that decides its results: its experiment, and those that it starts from.
        Names, folders and lengths of calls do not count, nor whether its first steps were those of a trunk."""
        identities: dict[str, str] = {}
        for run in self.ordered():
            experiment = configs.identity(run.experiment)
            for field in _without_effect(run.experiment):
                *above, name = field.split(".")
                functools.reduce(lambda values, key: values.get(key, {}), above, experiment).pop(name, None)
            if run.start:
                experiment["transfer"]["init"] = identities[run.start]
            text = json.dumps(experiment, sort_keys=True)
            identities[run.name] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return identities

    def factors(self, run: Run) -> dict[str, Factor]:
        """What distinguishes a run: the study's factors, and those read from its config."""
        experiment = run.experiment
        pretraining = self.factors(self[run.start]) if run.start else {}
        inherited = {name: pretraining[name] for name in INHERITED if name in pretraining}
        noise = [step for step in experiment.train.curate if isinstance(step, LabelNoise)]
        return {
            "depth": getattr(experiment.backbone, "depth", None),
            "seed": experiment.seed,
            "noise": round(1 - noise[0].precision, 6) if noise else 0.0,
            **({"noise_kind": noise[0].kind} if noise else {}),
            "frozen": bool(experiment.transfer.freeze),
            "init": "pretraining" if run.start else experiment.transfer.init or "random",
            "head": type(experiment.head).__name__,
            "stage": "pretraining" if experiment.transfer.init is None else "transfer",
            **inherited,
            **run.factors,
        }

    def experiment(self, run: Run, workdir: Path) -> Experiment:
        """A run's experiment, with folders in place of the names of runs."""
        experiment = run.experiment
        if run.trunk:
            branch = dataclasses.replace(experiment.branch, trunk=str((workdir / run.trunk).resolve()))
            experiment = dataclasses.replace(experiment, branch=branch)
        if not run.start:
            return experiment
        init = str((workdir / run.start).resolve())
        if has_checkpoint(workdir / run.name):  # it does not read init any more, and the study's folder may have moved
            path = workdir / run.name / "config.json"
            saved_init = convert(configs.read_json(path), _SavedConfig, path).transfer.init or ""
            init = saved_init if Path(saved_init).name == run.start else init
        return dataclasses.replace(experiment, transfer=dataclasses.replace(experiment.transfer, init=init))

    def check(self, workdir: Path) -> None:
        """Raises: UserError when the folder holds another study, or a run of the same name with another config."""
        other = read_study(workdir).name or self.name
        if other != self.name:
            raise UserError(f"{str(workdir)!r} holds the study {other!r}, not {self.name!r}; choose another --workdir")
        for run in self.runs:
            if not has_checkpoint(workdir / run.name):
                continue
            resolved = configs.to_json(self.experiment(run, workdir))
            saved = configs.with_defaults(configs.read_json(workdir / run.name / "config.json"))
            differences = configs.differences(saved, resolved, _without_effect(run.experiment))
            if differences:
                raise UserError(f"run {run.name!r} in {str(workdir)!r} was made with another config: "
                                f"{'; '.join(differences[:3])}; choose another --workdir, or remove that run's folder")


class RunState(msgspec.Struct):
    """State of a run in study.json."""

    name: str
    status: Literal["missing", "running", "done", "failed"] = "missing"
    attempts: int = 0
    error: str | None = None


class SavedStudy(msgspec.Struct):
    """What is read of study.json. More is written, for people."""

    name: str = ""
    spec: str = ""
    runs: tuple[RunState, ...] = ()

    @property
    def states(self) -> dict[str, RunState]:
        return {run.name: run for run in self.runs}


class _SavedTransfer(msgspec.Struct):
    init: str | None = None


class _SavedConfig(msgspec.Struct):
    """What a study reads of a run's config.json, whose classes may be out of reach."""

    transfer: _SavedTransfer = msgspec.field(default_factory=_SavedTransfer)


def read_study(workdir: Path) -> SavedStudy:
    """study.json; without a name if there is none. Raises: UserError when it cannot be read."""
    path = workdir / "study.json"
    return read_json(path, SavedStudy, "remove it; the study writes a new one") if path.is_file() else SavedStudy()


def load_study(spec: str) -> Study:
    """The study that ``get_study`` of ``FILE.py:argument=value`` returns.

    Raises:
      UserError: no such file, argument or value, or another return type.
    """
    study = configs.load(spec, "study")
    if not isinstance(study, Study):
        raise UserError(f"{spec}: get_study returned {type(study).__name__}, expected a Study")
    return study


def _without_effect(experiment: Experiment) -> tuple[str, ...]:
    """Fields that change neither what a run learns nor its metrics."""
    return (*WITHOUT_EFFECT, "transfer.init_step", *(f"evals.{name}.{field}" for name in experiment.evals
                                                     for field in ("threads", "workers", "prefetch", "resident")))
