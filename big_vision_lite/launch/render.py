"""Render the files and the command that start a run on a cluster.

Everything that comes from a config, a command line or a TOML file is quoted for the language that it ends up in:
``shlex`` for shell, PyYAML for YAML. Options that Slurm parses itself are checked when the cluster is read.
"""

from __future__ import annotations

import argparse
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
class RenderedJob:
    """The files and the command that start a run."""

    files: dict[str, str]
    """Contents by file name."""
    command: tuple[str, ...]
    """``{folder}`` stands for the folder of the files."""


def render(cluster: Cluster, name: str, config: str, overrides: Sequence[str] = ()) -> RenderedJob:
    """Render ``bvl train CONFIG OVERRIDES``.

    Args:
      name: of the run and of its folder in ``cluster.runs``, unless the overrides contain ``--workdir``.
      config: with a path that exists on the cluster's hosts.

    Raises:
      UserError: the config's path or the workdir does not suit the cluster; or as `render_job`.
    """
    path = PurePosixPath(config.partition(".py:")[0])
    if isinstance(cluster, Gcloud | SkyPilot) and (path.is_absolute() or ".." in path.parts):
        raise UserError(f"config {config!r}: hosts have only the repository; expected a path within it")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", default=f"{cluster.runs.rstrip('/')}/{name}")
    options, others = parser.parse_known_args(overrides)
    arguments = ["-m", "big_vision_lite", "train", config, "--workdir", options.workdir, *others]
    return render_job(cluster, name, arguments, options.workdir)


def render_job(cluster: Cluster, name: str, arguments: Sequence[str], workdir: str) -> RenderedJob:
    """Render a Python process per node (Slurm: per GPU) that may be interrupted and resumes.

    Args:
      arguments: of Python. If `jax.distributed` cannot find the processes by itself, the flags of
        `training.distributed.Processes` are appended.
      workdir: of the run.

    Raises:
      UserError: clouds do not accept the name, an argument is unprintable, or a slice cannot keep the workdir.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,58}[a-z0-9])?", name):
        raise UserError(f"name {name!r}; clouds accept a letter, then up to 59 lower-case letters, digits and dashes")
    if unprintable := [word for word in arguments if not word.isprintable()]:
        raise UserError(f"{unprintable[0]!r} has an unprintable character; scripts consist of lines")
    return _RENDERERS[type(cluster)](cluster, name, arguments, workdir)


def cloud_name(text: str) -> str:
    """A name that clouds accept, made of any text."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}".strip("-"))[:60].strip("-")


def _gcloud(cluster: Gcloud, name: str, arguments: Sequence[str], workdir: str) -> RenderedJob:
    if not workdir.startswith("gs://"):
        raise UserError(f"--workdir {workdir}: a slice may be preempted and keeps its runs at gs://BUCKET/FOLDER")
    flags = {"--spot": cluster.spot, "--service-account": cluster.service_account, "--network": cluster.network}
    options = [key if value is True else f"{key}={shlex.quote(value)}" for key, value in flags.items() if value]
    startup = _fill("gcloud_startup.sh", environment=_exports(cluster.environment), workdir=shlex.quote(workdir),
                    repository=shlex.quote(cluster.repository), revision=shlex.quote(cluster.revision),
                    extras=shlex.quote(_extras(cluster.extras)), data="\n".join(map(_fetch, cluster.data)),
                    restarts=str(cluster.restarts), arguments=shlex.join(arguments))
    launch = _fill("gcloud_launch.sh", name=shlex.quote(name), workdir=shlex.quote(workdir),
                   project=shlex.quote(cluster.project), zone=shlex.quote(cluster.zone),
                   accelerator_type=shlex.quote(cluster.accelerator_type),
                   runtime_version=shlex.quote(cluster.runtime_version),
                   options="".join(f" \\\n    {option}" for option in options), poll_seconds=str(cluster.poll_seconds))
    return RenderedJob({"launch.sh": launch, "startup.sh": startup}, ("bash", "{folder}/launch.sh"))


def _fetch(data: Data) -> str:
    if data.mode == "copy":
        return shlex.join(["copy_folder", data.source, data.target])
    bucket, _, folder = data.source.removeprefix("gs://").partition("/")
    return shlex.join(["mount_bucket", bucket, folder.strip("/"), data.target])


def _skypilot(cluster: SkyPilot, name: str, arguments: Sequence[str], workdir: str) -> RenderedJob:
    tpu = cluster.accelerators.lower().startswith("tpu")  # jax.distributed finds its hosts
    resources: dict[str, Any] = {"infra": cluster.infra, "accelerators": cluster.accelerators}
    if cluster.runtime_version:
        resources["accelerator_args"] = {"runtime_version": cluster.runtime_version}
    resources |= {"disk_size": cluster.disk_gb, "use_spot": cluster.spot,
                  "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": cluster.restarts}}
    run = (f"set -euo pipefail\nexec ~/bvl/bin/python {shlex.join(arguments)}\n" if tpu else
           _fill("skypilot_run.sh", port=str(cluster.port), arguments=shlex.join(arguments)))
    task = {"name": name, "workdir": ".", "num_nodes": cluster.nodes, "resources": resources,
            "envs": dict(cluster.environment),
            "file_mounts": {d.target: {"source": d.source, "mode": d.mode.upper()} for d in cluster.data},
            "setup": _fill("skypilot_setup.sh", extras=shlex.quote(_extras(cluster.extras))), "run": run}
    text = "# Start in the folder of the repository: sky jobs launch task.yaml\n" + _yaml(task)
    return RenderedJob({"task.yaml": text}, ("sky", "jobs", "launch", "--yes", "--detach-run", "{folder}/task.yaml"))


def _slurm(cluster: Slurm, name: str, arguments: Sequence[str], workdir: str) -> RenderedJob:
    options = {"job-name": name, "nodes": str(cluster.nodes), "ntasks-per-node": str(max(cluster.gpus_per_node, 1)),
               "cpus-per-task": str(cluster.cpus_per_task), "time": cluster.time, "partition": cluster.partition,
               "account": cluster.account, "gpus-per-node": str(cluster.gpus_per_node or "") or None,
               "signal": f"TERM@{cluster.grace_seconds}", "output": f"{name}-%j.log", "open-mode": "append",
               **cluster.options}
    lines = ["#SBATCH --requeue", *(f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None)]
    per_node = f"srun --nodes={cluster.nodes} --ntasks={cluster.nodes} --ntasks-per-node=1"
    data = "\n".join(f"{per_node} {shlex.join(['mkdir', '-p', '--', d.target])}\n"
                     f"{per_node} {shlex.join(['rsync', '-a', '--', d.source.rstrip('/') + '/', d.target])}"
                     for d in cluster.data)
    script = _fill("slurm.sbatch", options="\n".join(lines), directory=shlex.quote(cluster.directory),
                   environment=_exports(cluster.environment), setup="\n".join(cluster.setup), data=data,
                   training=shlex.join([cluster.python, *arguments]))
    return RenderedJob({"job.sbatch": script}, ("sbatch", "{folder}/job.sbatch"))


def _local(cluster: Local, name: str, arguments: Sequence[str], workdir: str) -> RenderedJob:
    command = [cluster.python or sys.executable, *arguments]
    starts = []
    for process in range(cluster.processes):
        flags = ["--coordinator", f"127.0.0.1:{cluster.port}", "--processes", str(cluster.processes), "--process",
                 str(process)] if cluster.processes > 1 else []
        starts.append(f"{shlex.join([*command, *flags])} &\npids+=(\"$!\")")
    script = _fill("local.sh", environment=_exports(cluster.environment), starts="\n".join(starts),
                   grace_seconds=str(cluster.grace_seconds))
    return RenderedJob({"run.sh": script}, ("bash", "{folder}/run.sh"))


_RENDERERS = {Gcloud: _gcloud, SkyPilot: _skypilot, Slurm: _slurm, Local: _local}


def _fill(template: str, **values: str) -> str:
    """A file of templates/ with each ``@{name}`` replaced; lines that become empty are dropped."""
    text = (resources.files(__package__) / "templates" / template).read_text()
    lines = []
    for line in text.splitlines():
        filled = re.sub(r"@\{(\w+)\}", lambda match: values[match[1]], line)
        if filled or not line:
            lines.append(filled)
    return "\n".join(lines) + "\n"


def _exports(environment: dict[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items())


def _extras(extras: Sequence[str]) -> str:
    return f"[{','.join(extras)}]" if extras else ""


class _Blocks(yaml.SafeDumper):
    """Writes multi-line strings as blocks."""


_Blocks.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def _yaml(task: dict[str, Any]) -> str:
    """A task as YAML, without entries that are None or empty."""
    return yaml.dump(_pruned(task), Dumper=_Blocks, sort_keys=False, width=math.inf)


def _pruned(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _pruned(entry) for key, entry in value.items() if entry is not None and entry != {}}
