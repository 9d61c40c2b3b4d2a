"""A study as jobs for a cluster: a file a run, and a script that hands them in so that each follows what it needs.

The folder of the study must be the same one for all machines: a shared file system, or a mounted bucket.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml

from big_vision_lite.errors import UserError
from big_vision_lite.launch.render import skypilot_setup, slurm_training
from big_vision_lite.scaling.results import replace
from big_vision_lite.scaling.runner import command_of
from big_vision_lite.scaling.study import Run

Kind = Literal["shell", "slurm", "skypilot"]


def write(workdir: Path, runs: Sequence[Run], kind: Kind, accelerators: str | None = None,
          storage: str | None = None, imports: Sequence[str] = (), python: str = "python") -> Path:
    """Write ``jobs/NAME.{sh,sbatch,yaml}`` for each run, and ``jobs/submit.sh``, whose path is returned.

    Jobs may be stopped and started again: they go on from their checkpoints. A run starts after those it needs are
    done: shell jobs stand in order; Slurm is told by ``--dependency``; SkyPilot's are handed in wave after wave.

    Args:
      runs: in order; what they need outside of these is done.
      accelerators: such as ``H100:1``; for Slurm they become ``--gres=gpu:H100:1``.
      storage: for SkyPilot, the bucket that is mounted at the study's folder on each machine, gs:// or s3://; the
        script copies the folder there first.

    Raises:
      UserError: an argument that a job cannot carry, no storage for SkyPilot, or the folder cannot be written.
    """
    for name, value in (("accelerators", accelerators), ("storage", storage)):
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_.:/+-]+", value):
            raise UserError(f"--{name} {value!r} is no such name; expected one as "
                            + ("H100:1" if name == "accelerators" else "gs://BUCKET/study"))
    workdir = workdir.resolve()
    if re.search(r'[\n\r%"]', str(workdir)):
        raise UserError(f"--workdir {str(workdir)!r} has a line break, % or a quote; jobs need a plain path")
    if kind == "skypilot" and not re.match("(gs|s3)://.", storage or ""):
        raise UserError(f"--storage {storage}; jobs of SkyPilot run on machines that do not have {str(workdir)!r}: "
                        "expected a bucket for it, as gs://BUCKET/study or s3://BUCKET/study")
    folder = workdir / "jobs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {str(folder)!r}: {error.strerror or error}; choose another --workdir") from None
    endings = {"shell": "sh", "slurm": "sbatch", "skypilot": "yaml"}
    paths = {run.name: folder / f"{run.name}.{endings[kind]}" for run in runs}
    for run in runs:
        words = shlex.join([*command_of(run, workdir, imports), "--alone"])
        command = f"{shlex.quote(python)} {words}"
        log = workdir / "logs" / f"{run.name}.txt"
        if kind == "shell":
            text = f"#!/bin/bash\nexec {command} >> {shlex.quote(str(log))} 2>&1\n"
        elif kind == "slurm":
            text = _slurm(run, command, log, accelerators)
        else:
            text = _skypilot(run, words, workdir, accelerators, storage)
        replace(paths[run.name], text)
    needs = {run.name: [name for name in run.needs if name in paths] for run in runs}
    submit = {"shell": _in_order, "slurm": _sbatch, "skypilot": _waves}[kind](runs, paths, needs)
    collect = f"# When all are done: bvl study FILE --workdir {shlex.quote(str(workdir))} --collect\n"
    if kind == "skypilot":
        copy = {"gs": "gcloud storage rsync --recursive", "s3": "aws s3 sync"}[storage[:2]]
        there, here = storage.rstrip("/"), shlex.quote(str(workdir))
        first = ("# Start this in the folder of the repository, which is installed on each machine.\n"
                 f"{copy} {here} {there} || exit\n")
        submit = submit.replace("#!/bin/bash\n", "#!/bin/bash\n" + first)
        collect = f"# When all are done: {copy} {there} {here}; then\n# bvl study FILE --workdir {here} --collect\n"
    replace(folder / "submit.sh", submit + collect)
    return folder / "submit.sh"


def _slurm(run: Run, command: str, log: Path, accelerators: str | None) -> str:
    lines = ["#!/bin/bash", f"#SBATCH --job-name={run.name}", f'#SBATCH --output="{log}"', "#SBATCH --open-mode=append",
             "#SBATCH --requeue", "#SBATCH --signal=TERM@120"]
    if accelerators:
        lines.append(f"#SBATCH --gres=gpu:{accelerators}")
    return "\n".join((*lines, slurm_training(f"srun {command}"))) + "\n"


def _skypilot(run: Run, words: str, workdir: Path, accelerators: str | None, storage: str) -> str:
    resources = {"accelerators": accelerators} if accelerators else {"cpus": "4+"}
    extras = ["tpu" if accelerators.lower().startswith("tpu") else "gpu"] if accelerators else []
    task = {"name": _plain(run.name), "workdir": ".", "resources": {**resources, "use_spot": True},
            "file_mounts": {str(workdir): {"source": storage, "mode": "MOUNT"}}, "setup": skypilot_setup(extras),
            "run": f"exec ~/bvl/bin/python {words}"}
    return yaml.safe_dump(task, sort_keys=False, width=math.inf)


def _in_order(runs: Sequence[Run], paths: dict[str, Path], needs: dict[str, list[str]]) -> str:
    lines = ["#!/bin/bash", "# One after the other; a job that fails does not stop those that do not need it.",
             "failed=0"]
    for run in runs:
        lines.append(f"bash {shlex.quote(str(paths[run.name]))} || {{ echo {shlex.quote(run.name + ' failed')} >&2; "
                     "failed=1; }")
    return "\n".join((*lines, "exit $failed")) + "\n"


def _sbatch(runs: Sequence[Run], paths: dict[str, Path], needs: dict[str, list[str]]) -> str:
    variable = {run.name: f"job_{number}" for number, run in enumerate(runs)}
    lines = ["#!/bin/bash", "set -euo pipefail"]
    for run in runs:
        ids = ":".join(f"${variable[name]}" for name in needs[run.name])
        after = f"--dependency=afterok:{ids} --kill-on-invalid-dep=yes " if ids else ""
        lines.append(f"{variable[run.name]}=$(sbatch --parsable {after}{shlex.quote(str(paths[run.name]))})")
        lines.append(f'echo "${variable[run.name]} "{shlex.quote(run.name)}')
    return "\n".join(lines) + "\n"


def _waves(runs: Sequence[Run], paths: dict[str, Path], needs: dict[str, list[str]]) -> str:
    wave: dict[str, int] = {}
    for run in runs:
        wave[run.name] = max((wave[name] + 1 for name in needs[run.name]), default=0)
    lines = ["#!/bin/bash", "# Each wave waits for the one before, for its runs start from those."]
    for number in range(max(wave.values(), default=-1) + 1):
        for run in runs:
            if wave[run.name] == number:
                name = shlex.quote(_plain(run.name))
                lines.append(f"sky jobs launch --yes --name {name} {shlex.quote(str(paths[run.name]))} &")
        lines.append("wait")
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    """A name as clusters take it: lower-case letters, digits and -."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
