"""From a cluster and a training command to the files and the command that start it there.

Everything that comes from a config, a command line or a TOML file is quoted for the language it lands in: ``shlex`` for
shell, PyYAML for YAML. What Slurm reads itself is checked when the cluster is made.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import yaml

from big_vision_lite.errors import UserError
from big_vision_lite.launch.clusters import Cluster, Data, Gcloud, Local, SkyPilot, Slurm


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What starts a run."""

    files: dict[str, str]
    """Names and contents."""
    command: tuple[str, ...]
    """That starts it; ``{folder}`` stands for where the files are."""


def render(cluster: Cluster, name: str, config: str, overrides: Sequence[str] = ()) -> Rendered:
    """The files for one run.

    Args:
      name: of the run; its folder below ``cluster.runs``, unless the overrides name a ``--workdir``.
      config: as `bvl train` takes it, with a path that the cluster's hosts know.
      overrides: what follows the config in `bvl train`.

    Raises:
      UserError: the name is not one that clouds accept, or the workdir is not where the cluster can keep it.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,58}[a-z0-9])?", name):
        raise UserError(f"name {name!r}; expected a letter, then up to 59 small letters, digits and dashes, as clouds "
                        "want it")
    if strange := [word for word in (config, *overrides) if not word.isprintable()]:
        raise UserError(f"{strange[0]!r} has a character that cannot be printed; scripts are made of lines")
    path = PurePosixPath(config.partition(".py:")[0])
    if isinstance(cluster, Gcloud | SkyPilot) and (path.is_absolute() or ".." in path.parts):
        raise UserError(f"config {config!r}: hosts have the repository alone; expected a path within it")
    workdir, overrides = _workdir(list(overrides), f"{cluster.runs.rstrip('/')}/{name}")
    arguments = ["train", config, "--workdir", workdir, *overrides]
    return _RENDERERS[type(cluster)](cluster, name, workdir, arguments)


def name_of(config: str) -> str:
    """A run's name by its config: that of the file, as clouds accept it."""
    stem = config.partition(".py")[0].replace("\\", "/").rpartition("/")[2]
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}".strip("-"))[:60].strip("-")


def _workdir(overrides: list[str], default: str) -> tuple[str, list[str]]:
    for at, word in enumerate(overrides):
        if word == "--workdir" and at + 1 < len(overrides):
            return overrides[at + 1], overrides[:at] + overrides[at + 2:]
        if word.startswith("--workdir="):
            return word.partition("=")[2], overrides[:at] + overrides[at + 1:]
    return default, overrides


def _gcloud(cluster: Gcloud, name: str, workdir: str, arguments: list[str]) -> Rendered:
    if not workdir.startswith("gs://"):
        raise UserError(f"--workdir {workdir}: a slice that may be taken away keeps its runs at gs://BUCKET/FOLDER")
    flags = {"--spot": cluster.spot, "--service-account": cluster.service_account, "--network": cluster.network}
    options = [key if value is True else f"{key}={shlex.quote(value)}" for key, value in flags.items() if value]
    startup = _fill("gcloud_startup.sh", environment=_exports(cluster.environment), workdir=shlex.quote(workdir),
                    repository=shlex.quote(cluster.repository), revision=shlex.quote(cluster.revision),
                    extras=shlex.quote(_extras(cluster.extras)), data="\n".join(map(_bring, cluster.data)),
                    restarts=str(cluster.restarts), arguments=shlex.join(arguments))
    launch = _fill("gcloud_launch.sh", name=shlex.quote(name), workdir=shlex.quote(workdir),
                   project=shlex.quote(cluster.project), zone=shlex.quote(cluster.zone),
                   accelerator_type=shlex.quote(cluster.accelerator_type),
                   runtime_version=shlex.quote(cluster.runtime_version),
                   options="".join(f" \\\n    {option}" for option in options), poll_seconds=str(cluster.poll_seconds))
    return Rendered({"launch.sh": launch, "startup.sh": startup}, ("bash", "{folder}/launch.sh"))


def _bring(data: Data) -> str:
    if data.mode == "copy":
        return shlex.join(["copy_folder", data.source, data.target])
    bucket, _, folder = data.source.removeprefix("gs://").partition("/")
    return shlex.join(["mount_bucket", bucket, folder.strip("/"), data.target])


def _skypilot(cluster: SkyPilot, name: str, workdir: str, arguments: list[str]) -> Rendered:
    tpu = cluster.accelerators.lower().startswith("tpu")  # whose hosts find each other
    resources: dict[str, Any] = {"infra": cluster.infra, "accelerators": cluster.accelerators}
    if cluster.runtime_version:
        resources["accelerator_args"] = {"runtime_version": cluster.runtime_version}
    resources |= {"disk_size": cluster.disk_gb, "use_spot": cluster.spot,
                  "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": cluster.restarts}}
    run = (f"set -euo pipefail\nexec ~/bvl/bin/python -m big_vision_lite {shlex.join(arguments)}\n" if tpu else
           _fill("skypilot_run.sh", port=str(cluster.port), arguments=shlex.join(arguments)))
    task = {"name": name, "workdir": ".", "num_nodes": cluster.nodes, "resources": resources,
            "envs": dict(cluster.environment),
            "file_mounts": {d.target: {"source": d.source, "mode": d.mode.upper()} for d in cluster.data},
            "setup": skypilot_setup(cluster.extras), "run": run}
    return Rendered({"task.yaml": "# Started by: sky jobs launch task.yaml, in the folder of the repository.\n"
                     + _yaml(task)}, ("sky", "jobs", "launch", "--yes", "--detach-run", "{folder}/task.yaml"))


def skypilot_setup(extras: Sequence[str]) -> str:
    """Commands that install the package of the task's ``workdir``, the folder of the repository, into ~/bvl."""
    return ("set -euo pipefail\npip install --quiet uv\nuv venv --quiet --allow-existing --python 3.12 ~/bvl\n"
            f"uv pip install --quiet --python ~/bvl/bin/python .{shlex.quote(_extras(extras))}\n")


def slurm_training(command: str) -> str:
    """A command of a Slurm job, which is queued again where another start goes on from the last checkpoint."""
    return f"""status=0
{command} || status=$?
# 143: told to save before the limit. 75: it stood still, or a process of it is gone.
if ((status == 143 || (status == 75 && ${{SLURM_RESTART_COUNT:-0}} < 20))); then
  scontrol requeue "${{SLURM_JOB_ID}}"
fi
exit "${{status}}\""""


def _slurm(cluster: Slurm, name: str, workdir: str, arguments: list[str]) -> Rendered:
    options = {"job-name": name, "nodes": str(cluster.nodes), "ntasks-per-node": str(max(cluster.gpus_per_node, 1)),
               "cpus-per-task": str(cluster.cpus_per_task), "time": cluster.time, "partition": cluster.partition,
               "account": cluster.account, "gpus-per-node": str(cluster.gpus_per_node or "") or None,
               "signal": f"TERM@{cluster.grace_seconds}", "output": f"{name}-%j.log", "open-mode": "append",
               **cluster.options}
    lines = ["#SBATCH --requeue", *(f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None)]
    each = f"srun --nodes={cluster.nodes} --ntasks={cluster.nodes} --ntasks-per-node=1"
    data = "\n".join(f"{each} {shlex.join(['mkdir', '-p', '--', d.target])}\n"
                     f"{each} {shlex.join(['rsync', '-a', '--', d.source.rstrip('/') + '/', d.target])}"
                     for d in cluster.data)
    script = _fill("slurm.sbatch", options="\n".join(lines), directory=shlex.quote(cluster.directory),
                   environment=_exports(cluster.environment), setup="\n".join(cluster.setup), data=data,
                   training=slurm_training(f"srun --wait=300 {shlex.quote(cluster.python)} -m big_vision_lite "
                                           f"{shlex.join(arguments)}"))
    return Rendered({"job.sbatch": script}, ("sbatch", "{folder}/job.sbatch"))


def _local(cluster: Local, name: str, workdir: str, arguments: list[str]) -> Rendered:
    command = [cluster.python or sys.executable, "-m", "big_vision_lite", *arguments]
    starts = []
    for process in range(cluster.processes):
        together = ["--coordinator", f"127.0.0.1:{cluster.port}", "--processes", str(cluster.processes), "--process",
                    str(process)] if cluster.processes > 1 else []
        starts.append(f"{shlex.join([*command, *together])} &\npids+=(\"$!\")")
    script = _fill("local.sh", environment=_exports(cluster.environment), starts="\n".join(starts),
                   grace_seconds=str(cluster.grace_seconds))
    return Rendered({"run.sh": script}, ("bash", "{folder}/run.sh"))


_RENDERERS = {Gcloud: _gcloud, SkyPilot: _skypilot, Slurm: _slurm, Local: _local}


def _fill(template: str, **values: str) -> str:
    """A file of templates/ with ``@{name}`` replaced; a line that becomes empty goes."""
    text = (resources.files(__package__) / "templates" / template).read_text()
    lines = []
    for line in text.splitlines():
        filled = re.sub(r"@\{(\w+)\}", lambda found: values[found[1]], line)
        if filled or not line:
            lines.append(filled)
    return "\n".join(lines) + "\n"


def _exports(environment: dict[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items())


def _extras(extras: Sequence[str]) -> str:
    return f"[{','.join(extras)}]" if extras else ""


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


_Blocks.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def _yaml(task: dict[str, Any]) -> str:
    """A task as YAML; what is None or empty is left out."""
    return yaml.dump(_told(task), Dumper=_Blocks, sort_keys=False, width=math.inf)


def _told(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _told(entry) for key, entry in value.items() if entry is not None and entry != {}}
