"""The command that runs many experiments: ``bvl study``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from big_vision_lite.commands.arguments import HELP, Imports, parse, print_arguments
from big_vision_lite.errors import UserError
from big_vision_lite.system.paths import scheme


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Run the unfinished experiments of a study, one after the other; the same command resumes after interruptions."""

    workdir: Path = Path("runs/NAME")
    """Folder for the study's runs."""
    list: bool = False
    """Print the runs with their state and estimated cost; run nothing."""
    only: str | None = None
    """Only runs whose names match, such as '*depth=18*', and those that they start from."""
    budget_seconds: float | None = None
    """Begin no run that would end later than this, by its estimated time."""
    jobs: Path | None = None
    """Write a job per unfinished run, and a script that submits them, for a cluster: configs/clusters/slurm.toml."""
    known: tuple[Path, ...] = ()
    """Files results.csv of other folders or machines; runs of the same config count as done, though their folders are
    gone. They are remembered in the study's folder."""
    gather: bool = False
    """Write results.csv from the runs in the folder, such as those of finished jobs; run nothing."""
    imports: Imports = ()


def study(arguments: list[str]) -> int:
    if not set(HELP).isdisjoint(arguments):
        if arguments[0] not in HELP:
            print_arguments(arguments[0], "study")
        parse(StudyOptions, ["--help"], "bvl study STUDY")
    if not arguments or arguments[0].startswith("-"):
        raise UserError("bvl study needs a study: bvl study configs/studies/quickstart.py")
    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs, each of which may want all of it
    from big_vision_lite.launch.clusters import read_cluster
    from big_vision_lite.scaling.studies import jobs, results, runner
    from big_vision_lite.scaling.studies.study import load_study

    spec = arguments[0]
    study = load_study(spec)
    options = parse(StudyOptions, arguments[1:], f"bvl study {spec}", StudyOptions(Path("runs") / study.name))
    workdir = options.workdir
    if address := scheme(workdir):
        raise UserError(f"--workdir {address}/...: a study's folder must be on a disk, such as a mounted bucket")
    runs = study.select(options.only)
    if options.budget_seconds is not None and not options.budget_seconds > 0:
        raise UserError(f"--budget-seconds {options.budget_seconds:g}; expected a number above 0")
    if options.known:
        study.check(workdir)
        results.add_known(workdir, options.known)
    if options.list:
        print(listing(study, workdir, runs))
    elif options.gather:
        with runner.own_folder(workdir):
            states = runner.prepare(study, workdir, spec)
        done = sum(state.status == "done" for state in states.values())
        print(f"{workdir / 'results.csv'}: {done} of {len(study.runs)} runs are done")
    elif options.jobs:
        cluster = read_cluster(options.jobs)
        with runner.own_folder(workdir):
            runner.prepare(study, workdir, spec)
        unfinished = results.unfinished(study, workdir, runs)
        script = jobs.write_jobs(workdir, unfinished, cluster, options.imports)
        print(f"{len(unfinished)} jobs; submit them with: bash {script}")
    else:
        return runner.execute(study, workdir, runs, spec, options.imports,
                              budget=math.inf if options.budget_seconds is None else options.budget_seconds)
    return 0


def listing(study, workdir: Path, runs) -> str:
    """The runs as a table: state, images, steps, images seen, passes over the images, FLOPs, and estimated hours on an
    H100 and time here; then the deviations from what the study repeats."""
    from big_vision_lite.scaling.studies import cost, results
    from big_vision_lite.scaling.studies.progress import timed_runs
    from big_vision_lite.training.progress import duration

    study.check(workdir)
    states = {row["run"]: row["status"] for row in results.result_rows(study, workdir)}
    timed = timed_runs(workdir, [run for run in study.runs if states[run.name] == "done"])
    width = max(len(run.name) for run in runs)
    lines = [f"{'run':{width}}  status   images     steps      images seen    passes  FLOPs    H100 h  time here"]
    total = 0.0
    for run in runs:
        seconds, _ = cost.estimate_seconds(run.experiment, timed)
        total += seconds if states[run.name] != "done" else 0.0
        images_seen = run.experiment.steps * run.experiment.train.batch_size
        flops = cost.training_flops(run.experiment)
        images = f"{run.images:,}" if run.images else "unknown"
        passes = f"{images_seen / run.images:.1f}" if run.images else "-"
        lines.append(f"{run.name:{width}}  {states[run.name]:7}  {images:<9}  {run.experiment.steps:<9,}  "
                     f"{images_seen:<13,}  {passes:<6}  {flops:<7.2g}  {flops / cost.GPU / 3600:<6.2g}  "
                     f"{duration(seconds)}")
    basis = f"the speed of {len(timed)} runs here" if timed else "an assumed speed of this machine's cores"
    return "\n".join((*lines, f"left to run: about {duration(total)}, at {basis}",
                      *(f"deviation: {line}" for line in study.deviations)))
