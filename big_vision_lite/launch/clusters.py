"""Clusters that runs are launched on. A TOML file names one of these kinds and sets its fields."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from big_vision_lite.errors import UserError, nearest, reading
from big_vision_lite.system.fields import build
from big_vision_lite.system.parse import read_text


@dataclasses.dataclass(frozen=True)
class Data:
    """A folder made available on each host."""

    source: str
    """gs://BUCKET/FOLDER, or what the kind of cluster can copy from."""
    target: str
    """Absolute path on the host, where the config looks for it."""
    mode: Literal["mount", "copy"] = "mount"
    """``mount`` reads over the network during the run; ``copy`` copies everything first."""

    def __post_init__(self) -> None:
        if not self.target.startswith("/"):
            raise UserError(f"data: target={self.target!r}; expected an absolute path")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Fields of all kinds."""

    kind: ClassVar[str]
    program: ClassVar[str]
    """Program that must be installed here to launch."""
    runs: str
    """Parent of the run folders: a path on every host, or gs://BUCKET/FOLDER."""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables of a run."""

    def __post_init__(self) -> None:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise UserError(f"environment: {name!r} is not a variable name")


@dataclasses.dataclass(frozen=True)
class Gcloud(Cluster):
    """A Cloud TPU slice, requested as a queued resource."""

    kind: ClassVar[str] = "gcloud"
    program: ClassVar[str] = "gcloud"
    project: str = dataclasses.field(kw_only=True)
    zone: str = dataclasses.field(kw_only=True)
    accelerator_type: str = dataclasses.field(kw_only=True)
    """Such as v5litepod-16; `bvl preflight --topology` takes the same names."""
    runtime_version: str = dataclasses.field(kw_only=True)
    """Software image of the hosts, such as v2-alpha-tpuv5-lite."""
    repository: str = dataclasses.field(kw_only=True)
    """Git repository of this package and the config, cloned by each host."""
    revision: str = "main"
    """Branch, tag or commit. Unlike a commit, a branch may move between a preemption and the restart."""
    extras: tuple[str, ...] = ("tpu", "gcs")
    """Extras of the package to install."""
    spot: bool = False
    """Cheaper, but may be preempted at any time."""
    service_account: str | None = None
    network: str | None = None
    data: tuple[Data, ...] = ()
    restarts: int = 20
    """How often a host restarts training after it died."""
    poll_seconds: int = 60
    """Interval between checks of the slice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs.startswith("gs://"):
            raise UserError(f"runs={self.runs!r}; a slice may be preempted and keeps its runs at gs://BUCKET/FOLDER")
        for data in self.data:
            if not data.source.startswith("gs://"):
                raise UserError(f"data: source={data.source!r}; hosts of a slice read from gs://BUCKET/FOLDER")
        _words("gcloud", revision=self.revision, **{f"extras {name}": name for name in self.extras})
        if self.restarts < 1 or self.poll_seconds < 1:
            raise UserError(f"restarts={self.restarts}, poll_seconds={self.poll_seconds}; expected at least 1")


@dataclasses.dataclass(frozen=True)
class SkyPilot(Cluster):
    """A managed job of SkyPilot, on any cloud."""

    kind: ClassVar[str] = "skypilot"
    program: ClassVar[str] = "sky"
    accelerators: str = dataclasses.field(kw_only=True)
    """Per node, such as H100:8 or tpu-v5litepod-16."""
    nodes: int = 1
    spot: bool = True
    infra: str | None = None
    """Cloud, region and zone, such as gcp/us-central1; None: the cheapest."""
    runtime_version: str | None = None
    """Software image of TPU hosts."""
    disk_gb: int | None = None
    extras: tuple[str, ...] = ("gpu",)
    """Extras of the package to install."""
    data: tuple[Data, ...] = ()
    restarts: int = 3
    """Restarts after errors; preemptions do not count."""
    port: int = 8476
    """Port of the coordinator on the first node."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes < 1 or self.restarts < 0:
            raise UserError(f"nodes={self.nodes}, restarts={self.restarts}; expected at least 1 and 0")
        _port(self.port)
        _words("skypilot", **{f"extras {name}": name for name in self.extras})


@dataclasses.dataclass(frozen=True)
class Slurm(Cluster):
    """A batch job with one process per GPU (without GPUs, per node), requeued before its time limit."""

    kind: ClassVar[str] = "slurm"
    program: ClassVar[str] = "sbatch"
    directory: str = dataclasses.field(kw_only=True)
    """Working directory, shared by all nodes; the config's path is relative to it."""
    time: str = dataclasses.field(kw_only=True)
    """Time limit in Slurm's format, such as 24:00:00."""
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 8
    partition: str | None = None
    account: str | None = None
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    """Further options of sbatch, such as {constraint = "a100"}."""
    setup: tuple[str, ...] = ()
    """Shell lines that prepare the environment, such as "module load cuda"; run verbatim."""
    python: str = "python"
    grace_seconds: int = 120
    """How long before the limit a run is told to save."""
    data: tuple[Data, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        # Slurm parses its options itself, not through a shell: quotes would not help.
        _words("slurm", time=self.time, partition=self.partition, account=self.account,
               **{f"options {key}": f"{key}={value}" for key, value in self.options.items()})
        if self.nodes < 1 or self.gpus_per_node < 0 or self.cpus_per_task < 1:
            raise UserError(f"nodes={self.nodes}, gpus_per_node={self.gpus_per_node}, cpus_per_task="
                            f"{self.cpus_per_task}; expected at least 1, 0 and 1")
        for data in self.data:
            if data.mode == "mount":
                raise UserError(f"data: {data.source!r} cannot be mounted by a batch job; set mode = \"copy\"")


@dataclasses.dataclass(frozen=True)
class Local(Cluster):
    """Processes on this machine."""

    kind: ClassVar[str] = "local"
    program: ClassVar[str] = "bash"
    processes: int = 1
    port: int = 8476
    """Port of the coordinator."""
    python: str | None = None
    """None: the interpreter of the launching command."""
    grace_seconds: int = 60
    """Time that processes have to save and exit when one of them fails."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.processes < 1 or self.grace_seconds < 0:
            raise UserError(f"processes={self.processes}, grace_seconds={self.grace_seconds}; expected at least 1 and "
                            "0")
        _port(self.port)


KINDS: dict[str, type[Cluster]] = {kind.kind: kind for kind in (Gcloud, SkyPilot, Slurm, Local)}


def read_cluster(path: Path) -> Cluster:
    """Read a cluster from a TOML file: ``kind`` names a class, the other keys are its fields.

    Raises:
      UserError: no such file, invalid TOML, or an unknown, missing or invalid key; names the nearest.
    """
    if not path.exists():
        raise UserError(f"there is no {str(path)!r}" + nearest(str(path), map(str, path.parent.glob("*.toml"))))
    with reading(path, "expected TOML", (ValueError, RecursionError)):
        values = tomllib.loads(read_text(path))
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path}: kind={kind!r}" + nearest(str(kind), KINDS))
    for text in _texts(values):
        if not text.isprintable():
            raise UserError(f"{path}: {text!r} has an unprintable character; write it on one line")
    try:
        return build(KINDS[kind], values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _texts(value: Any) -> Iterator[str]:
    """All texts in values of TOML."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)


def _words(kind: str, **values: str | None) -> None:
    """Raises: UserError when a value that another program parses is not a single plain word."""
    for name, value in values.items():
        if value is not None and not re.fullmatch(r"[\w@%+:,./=][\w@%+:,./=-]*", value, re.ASCII):
            raise UserError(f"{kind}: {name}={value!r}; expected letters, digits and @%+:,./=- without spaces")


def _port(port: int) -> None:
    if not 1024 <= port <= 65535:
        raise UserError(f"port={port}; expected 1024 to 65535")
