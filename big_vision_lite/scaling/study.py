"""A study: named runs in an order, each an Experiment, with the factors in which they differ.

    def get_study(sizes: tuple[int, ...] = (1_000, 10_000)) -> Study:
        pretraining = [Run(f"images={n}", experiment(n), factors={"images": n}) for n in sizes]
        tuning = [Run(f"tuned,images={n}", tuned(Transfer(init=f"run:images={n}"))) for n in sizes]
        return Study("data_size", (*pretraining, *tuning))

``Transfer(init="run:NAME")`` starts from the run of that name, which is then trained first.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from big_vision_lite import config as configs
from big_vision_lite.data.curation import LabelNoise
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.experiment import Experiment

OF_A_RUN = "run:"
"""Start of a ``Transfer.init`` that names a run of the same study."""
RESERVED = ("configs", "figures", "jobs", "logs")
"""Folders of a study beside those of its runs."""
INHERITED = ("images", "noise", "classes")
"""Factors that a run has from the run it starts from: a transfer is drawn over what its pretraining saw."""

Factor = str | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a study."""

    name: str
    """Also its folder: letters, digits and ``. _ = , + -``."""
    experiment: Experiment
    after: tuple[str, ...] = ()
    """Runs that must be done before; the one that ``Transfer.init`` names is one of them anyway."""
    factors: Mapping[str, Factor] = dataclasses.field(default_factory=dict)
    """What the study varies, by name: columns of results.csv. They come before those read from the config."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_=+][A-Za-z0-9._=,+-]*", self.name) or self.name in RESERVED:
            raise UserError(f"run {self.name!r} cannot be the name of a folder; expected letters, digits and "
                            f". _ = , + -, not starting with . or -, and none of {', '.join(RESERVED)}")

    @property
    def start(self) -> str | None:
        """Name of the run that it starts from, if that is one of the study."""
        init = self.experiment.transfer.init or ""
        return init.removeprefix(OF_A_RUN) if init.startswith(OF_A_RUN) else None

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the runs that come before."""
        return tuple(dict.fromkeys((*self.after, *([self.start] if self.start else []))))


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that together answer a question."""

    name: str
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        """Raises: UserError when a name is there twice, or a run needs one that is not there, or itself."""
        names: dict[str, Run] = {}
        for run in self.runs:
            if run.name in names:
                found = configs.differences(*(configs.to_json(r.experiment) for r in (names[run.name], run)))
                raise UserError(f"study {self.name!r} has two runs named {run.name!r}" + (
                    f", with different configs: {'; '.join(found[:3])}" if found else "") + "; name each by what it "
                    "varies")
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
        """The runs as listed, but each after those it needs. Raises: UserError for a circle."""
        done: dict[str, Run] = {}

        def visit(run: Run, path: tuple[str, ...]) -> None:
            if run.name in path:
                raise UserError(f"study {self.name!r}: runs wait for one another: "
                                + " after ".join((*path[path.index(run.name):], run.name)))
            for name in run.needs:
                visit(self[name], (*path, run.name))
            done.setdefault(run.name, run)

        for run in self.runs:
            if run.name not in done:
                visit(run, ())
        return tuple(done.values())

    def chosen(self, pattern: str | None) -> tuple[Run, ...]:
        """The runs that a pattern such as ``*depth=18*`` names and those they need, in order.

        Raises:
          UserError: it names none.
        """
        names = [run.name for run in self.runs if pattern is None or fnmatchcase(run.name, pattern)]
        if not names:
            raise UserError(f"--only {pattern!r} names no run of study {self.name!r}"
                            + nearest(str(pattern), [run.name for run in self.runs]))
        wanted = set()
        while names:
            name = names.pop()
            if name not in wanted:
                wanted.add(name)
                names += self[name].needs
        return tuple(run for run in self.ordered() if run.name in wanted)

    def factors(self, run: Run) -> dict[str, Factor]:
        """What tells a run from others: the study's factors, then what its config says."""
        experiment = run.experiment
        found: dict[str, Factor] = dict(run.factors)
        if run.start:
            before = self.factors(self[run.start])
            found |= {name: before[name] for name in INHERITED if name in before and name not in found}
        noise = [step.precision for step in experiment.train.curate if isinstance(step, LabelNoise)]
        read = {
            "depth": getattr(experiment.backbone, "depth", None),
            "seed": experiment.seed,
            "noise": round(1 - noise[0], 6) if noise else 0.0,
            "frozen": bool(experiment.transfer.freeze),
            "init": "pretraining" if run.start else experiment.transfer.init or "random",
            "head": type(experiment.head).__name__,
            "stage": "pretraining" if experiment.transfer.init is None else "transfer",
        }
        return {**read, **found}

    def experiment(self, run: Run, workdir: Path) -> Experiment:
        """A run's experiment, with the folder of the run that it starts from."""
        if not run.start:
            return run.experiment
        init = str((workdir / run.start).resolve())
        kept = _config(workdir / run.name) if started(workdir / run.name) else {}
        before = (kept.get("transfer") or {}).get("init") or ""
        if Path(before).name == run.start:  # the study's folder was moved since; a started run reads init no more
            init = before
        return dataclasses.replace(run.experiment, transfer=dataclasses.replace(run.experiment.transfer, init=init))

    def check(self, workdir: Path) -> None:
        """Raises: UserError when the folder holds another study, or another run under the name of one of this."""
        other = read_study(workdir).get("name", self.name)
        if other != self.name:
            raise UserError(f"{str(workdir)!r} holds the study {other!r}, not {self.name!r}; choose another --workdir")
        for run in self.runs:
            if not started(workdir / run.name):
                continue
            resolved = configs.to_json(self.experiment(run, workdir))
            kept = configs.with_defaults(_config(workdir / run.name))
            found = configs.differences(kept, resolved, _without_effect(run.experiment))
            if found:
                raise UserError(f"run {run.name!r} in {str(workdir)!r} was made with another config: "
                                + "; ".join(found[:3]) + "; choose another --workdir, or remove that run's folder")


def started(folder: Path) -> bool:
    """Whether a run's folder holds anything that was learnt."""
    return any((folder / "checkpoints").glob("[0-9]*"))


def read_study(workdir: Path) -> dict[str, Any]:
    """study.json, or an empty dict where there is none. Raises: UserError when it is not valid."""
    path = workdir / "study.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; remove it, and the study writes it again") from None


def load(spec: str) -> Study:
    """The study that ``FILE.py:argument=value`` describes, by its ``get_study``.

    Raises:
      UserError: no such file, argument or value, or no study.
    """
    study = configs.load(spec, "study")
    if not isinstance(study, Study):
        raise UserError(f"{spec}: get_study returned {type(study).__name__}, expected a Study")
    return study


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; remove the run's folder, and it is trained again") from None


def _without_effect(experiment: Experiment) -> tuple[str, ...]:
    """Fields that change neither what a run learns nor its figures."""
    inputs = ("train", *(f"evals.{name}" for name in experiment.evals))
    return ("log_every", "eval_every", "save_every", "keep", "mesh", "transfer.init_step",
            *(f"{at}.{field}" for at in inputs for field in ("threads", "workers", "prefetch")))
