"""The command that runs many experiments: ``bvl study``; and the process of one of its runs, ``python -m`` this."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from big_vision_lite.commands.arguments import parse, set_up_jax
from big_vision_lite.errors import UserError
from big_vision_lite.remote import scheme


@dataclasses.dataclass(frozen=True)
class Ask:
    """Run what is missing of a study, one run after the other; the same command goes on after any interruption."""

    workdir: Path
    """Folder for the study's runs."""
    list: bool = False
    """Print the runs with their state and estimated cost, and run nothing."""
    only: str | None = None
    """Only runs whose names match, such as '*depth=18*', and what they start from."""
    collect: bool = False
    """Write results.csv from what is in the folder, and run nothing: for runs that a cluster made."""
    emit: Literal["shell", "slurm", "skypilot"] | None = None
    """Write a job for each missing run to WORKDIR/jobs instead, with a script that hands them in."""
    accelerators: str | None = None
    """For --emit: what a job asks for, as H100:1."""
    storage: str | None = None
    """For --emit skypilot: the bucket that is mounted as WORKDIR on each machine, as gs://BUCKET/study."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules beside this package that the classes in configs may come from."""


def study(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        raise UserError("bvl study needs a study: bvl study configs/studies/quickstart.py")
    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs, each of which may want all of it
    from big_vision_lite.scaling import emit, results, runner
    from big_vision_lite.scaling.study import load

    spec = arguments[0]
    found = load(spec)
    asked = parse(Ask, arguments[1:], f"bvl study {spec}", Ask(Path("runs") / found.name))
    if address := scheme(asked.workdir):
        raise UserError(f"--workdir {address}/...: a study's folder must be on a disk; give one, such as a bucket "
                        "that is mounted")
    runs = found.chosen(asked.only)
    if asked.list:
        print(listing(found, asked.workdir, runs))
        return 0
    if asked.collect:
        runner.prepare(found, asked.workdir, spec)
        print(f"{results.write(found, asked.workdir)}: "
              f"{sum(row['status'] == 'done' for row in results.rows(found, asked.workdir))} of {len(found.runs)} runs "
              "are done")
        return 0
    if asked.emit:
        runner.prepare(found, asked.workdir, spec)
        missing = [run for run in runs if not results.finished(asked.workdir / run.name, run.experiment)]
        script = emit.write(asked.workdir, missing, asked.emit, asked.accelerators, asked.storage, asked.imports)
        print(f"{len(missing)} jobs; hand them in with: bash {script}")
        return 0
    return runner.execute(found, asked.workdir, runs, spec, asked.imports)


def listing(found, workdir: Path, runs) -> str:
    """The runs as a table: state, steps, images seen, operations and estimated time."""
    from big_vision_lite.scaling import cost, results
    from big_vision_lite.scaling.progress import timed
    from big_vision_lite.training.progress import duration

    found.check(workdir)
    states = {row["run"]: row["status"] for row in results.rows(found, workdir)}
    measured = timed(workdir, [run for run in found.runs if states[run.name] == "done"])
    width = max(len(run.name) for run in runs)
    lines = [f"{'run':{width}}  status   steps    images seen  operations  time"]
    total, known = 0.0, False
    for run in runs:
        seconds, known = cost.seconds(run.experiment, measured)
        total += seconds if states[run.name] != "done" else 0.0
        seen = run.experiment.steps * run.experiment.train.batch_size
        lines.append(f"{run.name:{width}}  {states[run.name]:7}  {run.experiment.steps:<7,}  {seen:<11,}  "
                     f"{cost.operations(run.experiment):<10.2g}  {duration(seconds)}")
    by = f"{len(measured)} runs that were timed here" if known else "an assumed speed of this machine's cores"
    return "\n".join((*lines, f"left to run: about {duration(total)}, by {by}"))


@dataclasses.dataclass(frozen=True)
class One:
    """Train from a resolved config, in a folder: one run of a study."""

    config: Annotated[Path, tyro.conf.Positional]
    """JSON file, as `bvl config show` prints it and a run's folder holds it."""
    workdir: Annotated[Path, tyro.conf.Positional]
    alone: bool = False
    """Do not end when standard input does: for jobs."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules beside this package that the classes in the config may come from."""


def one(arguments: list[str]) -> int:
    """The process of one run. Returns its exit code."""
    from big_vision_lite.config import read
    from big_vision_lite.scaling.results import figures

    try:
        asked = parse(One, arguments, "python -m big_vision_lite.commands.study")
        if not asked.alone:
            from big_vision_lite.scaling.runner import end_with_parent

            end_with_parent()
        experiment = read(asked.config, asked.imports)
        start = Path(experiment.transfer.init or "")
        if experiment.transfer.init and start.parent == asked.workdir.resolve().parent:
            before = read(asked.config.with_name(f"{start.name}.json"), asked.imports)
            figures(start, before)  # a run of the same study: not before it is done
        set_up_jax(experiment)
        from big_vision_lite.training.loop import Stopped, train
        from big_vision_lite.training.watchdog import PATIENCE

        try:
            train(experiment, asked.workdir, watchdog=PATIENCE)
        except Stopped as stop:
            print(f"bvl: {stop}", file=sys.stderr)
            return stop.code
    except UserError as error:
        print(f"bvl: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(one(sys.argv[1:]))
