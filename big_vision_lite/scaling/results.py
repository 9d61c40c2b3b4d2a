"""What the runs of a study came to: results.csv, a row a run, and timings.csv beside it.

results.csv is a function of the study and of what its runs learnt: on one machine it has the same bytes however often
the study was interrupted. What depends on the moment (seconds, attempts, commit) stands in timings.csv.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from big_vision_lite import config as configs
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.scaling.study import Run, Study, read_study

FIRST = ("run", "study", "status", "stage", "head", "init", "images", "depth", "seed", "noise", "classes", "frozen")
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
           **study.factors(run), "steps": experiment.steps,
           "images_seen": experiment.steps * experiment.train.batch_size}
    if not done:
        return row
    origin = run
    while origin.start:
        origin = study[origin.start]
    learnt, own = _read(workdir / origin.name / "data.json"), _read(folder / "data.json")
    row.setdefault("images", learnt.get("images"))
    row.setdefault("classes", len(learnt.get("classes", ())) or None)
    if own.get("images"):
        row["epochs"] = round(row["images_seen"] / own["images"], 6)
    row["data"] = own.get("fingerprint")
    row["versions"] = "; ".join(f"{name} {version}" for name, version in
                                _read(folder / "run.json").get("versions", {}).items())
    return {**row, **figures(folder, experiment)}


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
