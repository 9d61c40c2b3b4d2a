"""A study as jobs for a cluster: one job per run, and a script that submits them in the order of their dependencies.

All machines must see the study's folder: on a shared file system, or (SkyPilot) as a bucket that is mounted there.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from big_vision_lite.errors import UserError
from big_vision_lite.launch.clusters import Cluster, Data, Gcloud, SkyPilot, Slurm
from big_vision_lite.launch.render import cloud_name, render_job
from big_vision_lite.scaling.studies.results import write_file
from big_vision_lite.scaling.studies.runner import command_of
from big_vision_lite.scaling.studies.study import Run


def write_jobs(workdir: Path, runs: Sequence[Run], cluster: Cluster, imports: Sequence[str] = ()) -> Path:
    """Write one job per run to ``jobs/``, and ``jobs/submit.sh``, whose path is returned.

    Jobs may be interrupted and started again: they resume from their checkpoints. A run starts after those it needs:
    local jobs run in order, Slurm gets ``--dependency``, SkyPilot jobs are submitted in waves.

    Args:
      runs: in order; runs that they need but that are not among them must be done.
      cluster: SkyPilot mounts the folder of the same name in ``cluster.runs`` at ``workdir``.

    Raises:
      UserError: the cluster cannot see the folder, the folder's name does not suit jobs, or it cannot be written.
    """
    workdir = workdir.resolve()
    if re.search(r"[\n\r%]", str(workdir)):
        raise UserError(f"--workdir {str(workdir)!r} has a line break or %; jobs need a plain path")
    if isinstance(cluster, Gcloud):
        raise UserError("--jobs: kind 'gcloud' mounts no folder for a study; use kind 'skypilot', with accelerators "
                        "such as tpu-v5litepod-8")
    bucket = f"{cluster.runs.rstrip('/')}/{workdir.name}"
    if isinstance(cluster, SkyPilot):
        if not re.match("(gs|s3)://.", cluster.runs):
            raise UserError(f"--jobs: runs={cluster.runs!r}; expected a bucket that SkyPilot's machines can mount at "
                            f"{str(workdir)!r}, as gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
        cluster = dataclasses.replace(cluster, data=(*cluster.data, Data(bucket, str(workdir))))
    paths = {}
    for run in runs:
        arguments = [*command_of(run, workdir, imports), "--alone"]
        job = render_job(cluster, cloud_name(run.name), arguments, str(workdir / run.name))
        (file, text), = job.files.items()
        paths[run.name] = workdir / "jobs" / f"{run.name}{Path(file).suffix}"
        write_file(paths[run.name], text)
    needs = {run.name: [name for name in run.needs if name in paths] for run in runs}
    folder = shlex.quote(str(workdir))
    gather = f"# When all are done: bvl study FILE --workdir {folder} --gather"
    if isinstance(cluster, SkyPilot):
        copy = "gcloud storage rsync --recursive" if bucket.startswith("gs") else "aws s3 sync"
        lines = ["# Run this in the folder of the repository, which is installed on each machine.",
                 f"{copy} {folder} {shlex.quote(bucket)} || exit", *_skypilot_waves(paths, needs),
                 f"# Before gathering: {copy} {shlex.quote(bucket)} {folder}"]
    else:
        lines = _slurm_jobs(paths, needs) if isinstance(cluster, Slurm) else _local_jobs(paths)
    write_file(workdir / "jobs" / "submit.sh", "\n".join(("#!/bin/bash", *lines, gather)) + "\n")
    return workdir / "jobs" / "submit.sh"


def _log(path: Path) -> str:
    return str(path.parents[1] / "logs" / f"{path.stem}.txt")


def _local_jobs(paths: Mapping[str, Path]) -> list[str]:
    """Those that need a failed job end at once by themselves."""
    lines = ["# One after the other; a failed job does not stop those that do not need it.", "failed=0"]
    for name, path in paths.items():
        lines.append(f"bash {shlex.quote(str(path))} >>{shlex.quote(_log(path))} 2>&1 || "
                     f"{{ echo {shlex.quote(name)} failed >&2; failed=1; }}")
    return [*lines, "exit $failed"]


def _slurm_jobs(paths: Mapping[str, Path], needs: Mapping[str, list[str]]) -> list[str]:
    variable = {name: f"job_{number}" for number, name in enumerate(paths)}
    lines = ["set -euo pipefail"]
    for name, path in paths.items():
        ids = ":".join(f"${variable[before]}" for before in needs[name])
        after = f"--dependency=afterok:{ids} --kill-on-invalid-dep=yes " if ids else ""
        lines.append(f"{variable[name]}=$(sbatch --parsable {after}--output={shlex.quote(_log(path))} "
                     f"{shlex.quote(str(path))})")
        lines.append(f'echo "${variable[name]} "{shlex.quote(name)}')
    return lines


def _skypilot_waves(paths: Mapping[str, Path], needs: Mapping[str, list[str]]) -> list[str]:
    wave: dict[str, int] = {}
    for name in paths:
        wave[name] = max((wave[before] + 1 for before in needs[name]), default=0)
    lines = ["# Each wave waits for the one before, from which its runs start."]
    for number in sorted(set(wave.values())):
        lines += [f"sky jobs launch --yes {shlex.quote(str(path))} &" for name, path in paths.items()
                  if wave[name] == number]
        lines.append("wait")
    return lines
