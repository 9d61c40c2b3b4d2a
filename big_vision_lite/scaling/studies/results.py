"""The results of a study: results.csv, one row per run, and timings.csv beside it.

results.csv depends only on the study and on what its runs learned: on one machine it has the same bytes however often
the study was interrupted. What depends on the moment (seconds, attempts, commit) is in timings.csv.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from big_vision_lite.errors import UserError, writing
from big_vision_lite.experiment import Experiment, read_experiment
from big_vision_lite.scaling.laws.curves import read_rows
from big_vision_lite.scaling.studies.cost import flops_to_run, training_flops
from big_vision_lite.scaling.studies.study import INHERITED, Run, Study, read_study
from big_vision_lite.system.atomic import write_bytes
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.metrics import read_run
from big_vision_lite.training.workdir import read_dataset_info

FIRST = ("run", "study", "status", "stage", "head", "init", "images", "depth", "seed", "noise", "noise_kind",
         "classes", "frozen", "frozen_summary")
"""First columns; the study's own factors follow, then `AFTER_FACTORS`, then the metrics."""
AFTER_FACTORS = ("steps", "images_seen", "epochs", "operations", "learning_rate", "rate_choice", "config",
                 "data", "versions", "main_metric", "direction", "unit")
KNOWN = "known.csv"
"""Rows of results of other folders, that count as done in this one."""


def finished(folder: Path, experiment: Experiment) -> bool:
    """Whether a run has come to its end, with metrics."""
    try:
        final_metrics(folder, experiment)
    except UserError:
        return False
    return True


def final_metrics(folder: Path, experiment: Experiment) -> dict[str, float | None]:
    """The metrics of a run's last evaluation.

    Raises:
      UserError: the folder holds no run, an unfinished one, or one without metrics.
    """
    run = read_run(folder)
    if not run:
        raise UserError(f"{str(folder)!r} holds no run: it has no run.json; train it first")
    if "results" not in run:  # written at the end only
        raise UserError(f"the run in {str(folder)!r} is at step {run.get('step', 0)} of {experiment.steps}; the same "
                        "command resumes it")
    if experiment.evals and not run["results"]:
        raise UserError(f"the run in {str(folder)!r} has no metrics, though its config names "
                        f"{', '.join(experiment.evals)}; remove the folder and train it again")
    return run["results"]


def result_rows(study: Study, workdir: Path) -> list[dict[str, Any]]:
    """One row per run, in the study's order, including runs that failed or have not run yet.

    ``status`` is done, failed or missing. ``images_seen`` counts repeats (steps x batch size), ``operations`` are the
    FLOPs of training (`cost.training_flops`), ``config`` is the hash of `Study.identities`. A transfer has the
    ``images``, ``noise`` and ``classes`` of the run that it starts from. Of a run that is only known, the row is as it
    was found, but for the names of run and study.
    """
    states, known = read_study(workdir).states, known_rows(workdir)
    rows = []
    for run in study.runs:
        identity = study.identities[run.name]
        if identity in known and not finished(workdir / run.name, run.experiment):
            rows.append(known[identity] | {"run": run.name, "study": study.name})
            continue
        root = run
        while root.start:
            root = study[root.start]
        failed = run.name in states and states[run.name].status == "failed"
        rows.append(_row(run.name, study.name, study.factors(run), run.experiment, workdir / run.name,
                         workdir / root.name, "failed" if failed else "missing") | {"config": identity})
    return rows


def known_rows(workdir: Path) -> dict[str, dict[str, Any]]:
    """The rows of `KNOWN` by their hash. Raises: UserError when the file cannot be read."""
    return _by_config(workdir / KNOWN) if (workdir / KNOWN).is_file() else {}


def add_known(workdir: Path, files: Sequence[Path]) -> None:
    """Add finished runs of results.csv files to those that are known in a study's folder.

    Raises:
      UserError: a file cannot be read or has no hashes.
    """
    known = known_rows(workdir)
    for path in files:
        known |= _by_config(path)
    if files:
        write_file(workdir / KNOWN, to_csv(known.values()))


def _by_config(path: Path) -> dict[str, dict[str, Any]]:
    rows = read_rows(path)
    if "config" not in rows[0]:
        raise UserError(f"{path}: no column 'config'; expected a results.csv with the hash of each run's config, as "
                        "bvl study writes it")
    return {row["config"]: dict(row) for row in rows if row.get("status") == "done" and row["config"]}


def unfinished(study: Study, workdir: Path, runs: Sequence[Run]) -> tuple[Run, ...]:
    """Those of ``runs`` that are neither done nor known, and those that they need and that have no folder, in order."""
    known = known_rows(workdir)
    selected, needed, left = {run.name for run in runs}, set[str](), list[Run]()
    for run in reversed(study.ordered()):  # each comes before what it needs
        wanted = run.name in needed or (run.name in selected and study.identities[run.name] not in known)
        if wanted and not finished(workdir / run.name, run.experiment):
            left.append(run)
            needed.update(run.needs)
    return tuple(reversed(left))


def _row(name: str, study: str, factors: Mapping[str, Any], experiment: Experiment, folder: Path, root: Path,
         unfinished: str) -> dict[str, Any]:
    """A row of results.csv.

    Args:
      root: folder of the run at the start of the chain that led to this one.
      unfinished: status of a run that is not done.
    """
    done = finished(folder, experiment)
    row = {"run": name, "study": study, "status": "done" if done else unfinished, **factors,
           "frozen_summary": experiment.transfer.frozen_summary, "steps": experiment.steps,
           "images_seen": experiment.steps * experiment.train.batch_size, "operations": training_flops(experiment),
           "learning_rate": experiment.optimizer.learning_rate}
    if not done:
        return row
    data, run = read_dataset_info(folder), read_run(folder)
    if (root / "data.json").is_file():
        root_data = read_dataset_info(root)
        row.setdefault("images", root_data.images)
        row.setdefault("classes", len(root_data.classes) or None)
    if data.images:
        row["epochs"] = round(row["images_seen"] / data.images, 6)
    row["data"] = data.fingerprint
    row["versions"] = "; ".join(f"{package} {version}" for package, version in run.get("versions", {}).items())
    metrics = final_metrics(folder, experiment)
    if main := run.get("main_metric"):
        columns = [f"{split}/{main['name']}" for split in experiment.evals]
        row["main_metric"] = next((column for column in columns if column in metrics), None)
        row |= {key: main[key] for key in ("direction", "unit")}
    return row | metrics


def row_of(folder: Path, imports: Sequence[str] = ()) -> dict[str, Any]:
    """The row of a single run, with the factors found in its config; ``study`` is the name of the parent folder. For a
    run of a study with a results.csv, its row there.

    Args:
      imports: modules besides this package that the classes in configs may come from.

    Raises:
      UserError: the folder holds no run, or a config cannot be read.
    """
    folder = folder.resolve()
    experiment = read_experiment(folder / "config.json", imports)
    if row := _row_in_study(folder):
        return row
    root, root_experiment = folder, experiment
    visited = {folder}
    while (start := _start_of(root, root_experiment)) and start not in visited:
        visited.add(start)
        root, root_experiment = start, read_experiment(start / "config.json", imports)
    # A transfer is plotted over what its pretraining saw.
    factors, inherited = (Study("", (run,)).factors(run) for run in (Run("run", experiment),
                                                                     Run("run", root_experiment)))
    factors |= {name: inherited[name] for name in INHERITED if name in inherited}
    if root != folder:
        factors["init"] = "pretraining"
    return _row(folder.name, folder.parent.name, factors, experiment, folder, root, "missing")


def _start_of(folder: Path, experiment: Experiment) -> Path | None:
    """Folder of the run that a run starts from, or of the same name beside it, as the folders may have been moved."""
    if experiment.transfer.init is None:
        return None
    start = as_path(Path(experiment.transfer.init).expanduser())
    return next((path for path in (start, folder.parent / start.name) if (path / "config.json").is_file()), None)


def _row_in_study(folder: Path) -> dict[str, Any] | None:
    """The row of a finished run in the results.csv of its study."""
    with contextlib.suppress(UserError):
        for row in read_rows(folder.parent / "results.csv"):
            if (row.get("run"), row.get("status")) == (folder.name, "done"):
                return row
    return None


def timings(study: Study, workdir: Path) -> list[dict[str, Any]]:
    """For each run that is done: seconds, attempts, machine and commit. Operations and images per second are of the
    steps that it took itself: a branch does not count its trunk's."""
    states = read_study(workdir).states
    rows = []
    for run in study.runs:
        if finished(workdir / run.name, run.experiment):
            info = read_run(workdir / run.name)
            attempts = states[run.name].attempts if run.name in states else None
            shared = run.experiment.branch.step if run.experiment.branch else 0
            images_seen = (run.experiment.steps - shared) * run.experiment.train.batch_size
            seconds = info.get("wall_seconds")
            rows.append({
                "run": run.name, "attempts": attempts, "wall_seconds": seconds,
                "seconds_to_first_step": info.get("seconds_to_first_step"),
                "operations": flops_to_run(run.experiment),
                "images_per_second": round(images_seen / seconds, 1) if seconds else None,
                "platform": info.get("platform"), "devices": " x ".join(map(str, reversed(info.get("devices", [])))),
                "cpu_cores": info.get("cpu_cores"), "git_commit": info.get("git_commit"), "started": info.get("time")})
    return rows


def write_results(study: Study, workdir: Path) -> Path:
    """Write results.csv and timings.csv, atomically. Returns the path of the first."""
    factors = sorted({name for run in study.runs for name in study.factors(run)} - {*FIRST, *AFTER_FACTORS})
    path = workdir / "results.csv"
    write_file(path, to_csv(result_rows(study, workdir), (*FIRST, *factors, *AFTER_FACTORS)))
    write_file(workdir / "timings.csv", to_csv(timings(study, workdir)))
    return path


def to_csv(rows: Iterable[Mapping[str, Any]], first: Sequence[str] = ()) -> str:
    """Rows as csv: the columns named first, then all others, sorted if ``first`` names any."""
    rows = list(rows)
    others = dict.fromkeys(name for row in rows for name in row if name not in first)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*first, *(sorted(others) if first else others)], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file and its folder, atomically. Raises: UserError when it cannot be written."""
    with writing(repr(str(path)), "choose another folder or free some space"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.encode() if isinstance(content, str) else content)
