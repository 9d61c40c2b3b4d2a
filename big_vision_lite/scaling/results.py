"""What the runs of a study came to: results.csv, a row a run, and timings.csv beside it.

results.csv is a function of the study and of what its runs learnt: on one machine it has the same bytes however often
the study was interrupted. What depends on the moment (seconds, attempts, commit) stands in timings.csv.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from big_vision_lite import config as configs
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.remote import place
from big_vision_lite.scaling.curves import read_rows
from big_vision_lite.scaling.study import INHERITED, Run, Study, read_study

FIRST = ("run", "study", "status", "stage", "head", "init", "images", "depth", "seed", "noise", "classes", "frozen",
         "held")
"""Columns that stand first; the study's own factors follow, then length, data and versions, then the metrics."""
THEN = ("steps", "images_seen", "epochs", "data", "versions")


def finished(folder: Path, experiment: Experiment) -> bool:
    """Whether a run has come to its end, with figures."""
    try:
        figures(folder, experiment)
    except UserError:
        return False
    return True


def figures(folder: Path, experiment: Experiment) -> dict[str, float]:
    """The figures of a run's last evaluation.

    Raises:
      UserError: the folder holds no run, one that is not at its end, or one without figures.
    """
    run = _read(folder / "run.json")
    if not run:
        raise UserError(f"{str(folder)!r} holds no run, for it has no run.json; train it first")
    if "results" not in run:  # they are written at the end alone
        raise UserError(f"the run in {str(folder)!r} stands at step {run.get('step', 0)} of {experiment.steps}; the "
                        "same command goes on with it")
    if experiment.evals and not run["results"]:
        raise UserError(f"the run in {str(folder)!r} has no metrics, though its config names "
                        f"{', '.join(experiment.evals)}; remove the folder and train it again")
    return run["results"]


def rows(study: Study, workdir: Path) -> list[dict[str, Any]]:
    """A row for each run of the study, in its order; also for those that failed or were not run yet.

    ``status`` is done, failed or missing. ``images_seen`` counts repeats (steps x batch). A transfer has the
    ``images``, ``noise`` and ``classes`` of the run it starts from.
    """
    states = {run["name"]: run for run in read_study(workdir).get("runs", [])}
    return [_row(study, run, workdir, states.get(run.name, {})) for run in study.runs]


def _row(study: Study, run: Run, workdir: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    experiment, folder = run.experiment, workdir / run.name
    done = finished(folder, experiment)
    row = {"run": run.name, "study": study.name,
           "status": "done" if done else "failed" if state.get("status") == "failed" else "missing",
           **study.factors(run), "held": experiment.transfer.held, "steps": experiment.steps,
           "images_seen": experiment.steps * experiment.train.batch_size}
    if not done:
        return row
    origin = run
    while origin.start:
        origin = study[origin.start]
    return row | _outcome(row, experiment, folder, workdir / origin.name)


def _outcome(row: Mapping[str, Any], experiment: Experiment, folder: Path, origin: Path) -> dict[str, Any]:
    """What a row has of a run that is done, beside its factors. ``origin``: the folder of the first run that led to
    it, its own where it started at random."""
    learnt, own = _read(origin / "data.json"), _read(folder / "data.json")
    found = {"images": row.get("images", learnt.get("images")),
             "classes": row.get("classes", len(learnt.get("classes", ())) or None)}
    if own.get("images"):
        found["epochs"] = round(row["images_seen"] / own["images"], 6)
    found["data"] = own.get("fingerprint")
    found["versions"] = "; ".join(f"{name} {version}" for name, version in
                                  _read(folder / "run.json").get("versions", {}).items())
    return {**found, **figures(folder, experiment)}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run by what its folder says."""

    folder: Path
    experiment: Experiment
    images: int | None
    """That it learnt from, and their classes; None: it has not begun."""
    classes: int | None


def lineage(folder: Path, imports: Sequence[str] = ()) -> tuple[Trained, ...]:
    """A run, the run that it started from, and so on: the last one started at random, or from something that is no
    run's folder.

    Args:
      imports: modules beside this package that the classes in configs may come from.

    Raises:
      UserError: the folder holds no run, or a config cannot be read.
    """
    found: list[Trained] = []
    at: Path | None = folder
    while at is not None and at not in [run.folder for run in found]:
        experiment, data = configs.read(at / "config.json", imports), _read(at / "data.json")
        found.append(Trained(at, experiment, data.get("images"), len(data.get("classes", ())) or None))
        init = experiment.transfer.init
        start = place(Path(init).expanduser()) if init else None
        beside = [start, at.parent / start.name] if start is not None else []  # the folders may have been moved
        at = next((path for path in beside if (path / "config.json").is_file()), None)
    return tuple(found)


def row_of(folder: Path, imports: Sequence[str] = ()) -> dict[str, Any]:
    """The row of a run in a folder of its own, with what its config tells of its factors. ``study`` is the name of the
    folder around it. A run of a study has the row that it has there, where that study has a results.csv.

    Raises:
      UserError: as `lineage`.
    """
    folder = folder.resolve()
    runs = lineage(folder, imports)
    experiment, origin = runs[0].experiment, runs[-1]
    if known := _in_study(folder):
        return known
    # Of the steps of curation those of the first run count, for a transfer is drawn over what its pretraining saw.
    factors, first = (Study("", (run,)).factors(run) for run in (Run("run", r.experiment) for r in (runs[0], origin)))
    factors |= {name: first[name] for name in INHERITED if name in first}
    if len(runs) > 1:
        factors["init"] = "pretraining"
    done = finished(folder, experiment)
    row = {"run": folder.name, "study": folder.parent.name, "status": "done" if done else "missing", **factors,
           "held": experiment.transfer.held, "steps": experiment.steps,
           "images_seen": experiment.steps * experiment.train.batch_size}
    return row | (_outcome(row, experiment, folder, origin.folder) if done else {})


def _in_study(folder: Path) -> dict[str, Any] | None:
    """The row of a finished run in the results.csv of its study."""
    with contextlib.suppress(UserError):
        for row in read_rows(folder.parent / "results.csv"):
            if (row.get("run"), row.get("status")) == (folder.name, "done"):
                return row
    return None


def timings(study: Study, workdir: Path) -> list[dict[str, Any]]:
    """For each run that is done: seconds, attempts, machine and commit."""
    states = {run["name"]: run for run in read_study(workdir).get("runs", [])}
    found = []
    for run in study.runs:
        if finished(workdir / run.name, run.experiment):
            told = _read(workdir / run.name / "run.json")
            seen = run.experiment.steps * run.experiment.train.batch_size
            seconds = told.get("wall_seconds")
            found.append({
                "run": run.name, "attempts": states.get(run.name, {}).get("attempts"), "wall_seconds": seconds,
                "seconds_to_first_step": told.get("seconds_to_first_step"),
                "images_per_second": round(seen / seconds, 1) if seconds else None, "platform": told.get("platform"),
                "devices": " x ".join(map(str, reversed(told.get("devices", [])))), "cpu_cores": told.get("cpu_cores"),
                "git_commit": told.get("git_commit"), "started": told.get("time")})
    return found


def write(study: Study, workdir: Path) -> Path:
    """Write results.csv and timings.csv anew; nobody sees a half-written one. Returns the path of the first."""
    path = workdir / "results.csv"
    replace(path, table(rows(study, workdir), (*FIRST, *_own_factors(study), *THEN)))
    replace(workdir / "timings.csv", table(timings(study, workdir)))
    return path


def _own_factors(study: Study) -> list[str]:
    return sorted({name for run in study.runs for name in study.factors(run)} - {*FIRST, *THEN})


def table(rows: Iterable[Mapping[str, Any]], first: Iterable[str] = ()) -> str:
    """Rows as csv: the columns named first, then all others, sorted if ``first`` names any."""
    rows, first = list(rows), list(first)
    others = dict.fromkeys(name for row in rows for name in row if name not in first)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*first, *(sorted(others) if first else others)], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def replace(path: Path, text: str) -> None:
    """As `config.write`. Raises: UserError when it cannot be."""
    try:
        configs.write(path, text)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another --workdir or free some "
                        "space") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # a process may have died while it wrote
        return {}
