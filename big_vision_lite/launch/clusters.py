"""Where runs are launched: a TOML file names one of these kinds, and its fields."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Literal

from big_vision_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Data:
    """A folder that a run reads, brought to each host."""

    source: str
    """Where it is: gs://BUCKET/FOLDER, or what the kind of cluster can copy from."""
    target: str
    """Where the config looks for it: an absolute path on the host."""
    mode: Literal["mount", "copy"] = "mount"
    """``mount`` reads over the network as a run goes; ``copy`` takes all of it first."""

    def __post_init__(self) -> None:
        if not self.target.startswith("/"):
            raise UserError(f"data: target={self.target!r}; expected an absolute path")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What every kind has."""

    kind: ClassVar[str]
    program: ClassVar[str]
    """That must be here to launch."""
    runs: str
    """Folder that run NAME gets a folder NAME in: a path on every host, or gs://BUCKET/FOLDER."""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    """Variables that a run sees."""

    def __post_init__(self) -> None:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise UserError(f"environment: {name!r} is no name of a variable")


@dataclasses.dataclass(frozen=True)
class Gcloud(Cluster):
    """A Cloud TPU slice, asked for as a queued resource."""

    kind: ClassVar[str] = "gcloud"
    program: ClassVar[str] = "gcloud"
    project: str = dataclasses.field(kw_only=True)
    zone: str = dataclasses.field(kw_only=True)
    accelerator_type: str = dataclasses.field(kw_only=True)
    """As `bvl preflight --topology` takes it, such as v5litepod-16."""
    runtime_version: str = dataclasses.field(kw_only=True)
    """Image of the hosts, such as v2-alpha-tpuv5-lite."""
    repository: str = dataclasses.field(kw_only=True)
    """Git repository of this package and the config; each host clones it."""
    revision: str = "main"
    """Branch, tag or commit. A branch may move between a preemption and the next start; a commit does not."""
    extras: tuple[str, ...] = ("tpu", "gcs")
    """Of the package, that are installed."""
    spot: bool = False
    """Cheaper, and taken away at any time."""
    service_account: str | None = None
    network: str | None = None
    data: tuple[Data, ...] = ()
    restarts: int = 20
    """Times that a host starts training again after it died."""
    poll_seconds: int = 60
    """Between looks at the slice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs.startswith("gs://"):
            raise UserError(f"runs={self.runs!r}; a slice that may be taken away keeps its runs at gs://BUCKET/FOLDER")
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
    """Of each node, such as H100:8 or tpu-v5litepod-16."""
    nodes: int = 1
    spot: bool = True
    infra: str | None = None
    """Cloud, region and zone, such as gcp/us-central1; None: wherever it is cheapest."""
    runtime_version: str | None = None
    """Image of a TPU's hosts."""
    disk_gb: int | None = None
    extras: tuple[str, ...] = ("gpu",)
    """Of the package, that are installed."""
    data: tuple[Data, ...] = ()
    restarts: int = 3
    """After errors; preemptions do not count."""
    port: int = 8476
    """On which the first node speaks with the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes < 1 or self.restarts < 0:
            raise UserError(f"nodes={self.nodes}, restarts={self.restarts}; expected at least 1 and 0")
        _port(self.port)
        _words("skypilot", **{f"extras {name}": name for name in self.extras})


@dataclasses.dataclass(frozen=True)
class Slurm(Cluster):
    """A batch job, one process a GPU (or a node where there are none), queued again before its time is over."""

    kind: ClassVar[str] = "slurm"
    program: ClassVar[str] = "sbatch"
    directory: str = dataclasses.field(kw_only=True)
    """Folder that the config's path starts from, seen by all nodes."""
    time: str = dataclasses.field(kw_only=True)
    """Limit of one turn, as Slurm writes it: 24:00:00."""
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 8
    partition: str | None = None
    account: str | None = None
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    """Further options of sbatch: {constraint = "a100"}."""
    setup: tuple[str, ...] = ()
    """Lines of shell that make Python ready, such as "module load cuda". They are run as they are."""
    python: str = "python"
    grace_seconds: int = 120
    """Before the limit, that a run is told to save."""
    data: tuple[Data, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        # Slurm reads its options itself, not through a shell, so that quotes would not help.
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
    """On which they speak with each other."""
    python: str | None = None
    """None: that of the command."""
    grace_seconds: int = 60
    """That processes have to save and leave when one of them failed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.processes < 1 or self.grace_seconds < 0:
            raise UserError(f"processes={self.processes}, grace_seconds={self.grace_seconds}; expected at least 1 and "
                            "0")
        _port(self.port)


KINDS: dict[str, type[Cluster]] = {kind.kind: kind for kind in (Gcloud, SkyPilot, Slurm, Local)}


def read(path: Path) -> Cluster:
    """The cluster that a TOML file describes: ``kind`` names a class, the other keys are its fields.

    Raises:
      UserError: no such file, it is not TOML, or a key or value is not as the kind needs it; names the nearest.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        beside = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}" + nearest(str(path), beside)) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path}: kind={kind!r}" + nearest(str(kind), KINDS))
    try:
        return _made(KINDS[kind], values, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _made(kind: type, values: dict[str, Any], at: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise UserError(f"no key {at + key!r}" + nearest(key, fields))
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{at + name!r} is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _value(value, hints[key], at + key) for key, value in values.items()})


def _value(value: Any, hint: Any, at: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # with None, which TOML cannot say
        return _value(value, inner[0], at)
    if origin is Literal:
        if value not in inner:
            raise UserError(f"{at}={value!r}" + nearest(str(value), inner))
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(one, inner[0], f"{at}[{number}]") for number, one in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(one, inner[1], f"{at}.{key}") for key, one in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _made(hint, value, f"{at}.")
    wanted = origin or hint
    if dataclasses.is_dataclass(hint) or type(value) is not wanted:
        raise UserError(f"{at}={value!r}; expected {'a table' if dataclasses.is_dataclass(hint) else wanted.__name__}")
    if wanted is str and not value.isprintable():
        raise UserError(f"{at}={value!r} has a character that cannot be printed; write it on one line")
    return value


def _words(kind: str, **values: str | None) -> None:
    """Raises: UserError when a value that another program reads as one word is none."""
    for name, value in values.items():
        if value is not None and not re.fullmatch(r"[\w@%+:,./=][\w@%+:,./=-]*", value, re.ASCII):
            raise UserError(f"{kind}: {name}={value!r}; expected letters, digits and @%+:,./=- without spaces")


def _port(port: int) -> None:
    if not 1024 <= port <= 65535:
        raise UserError(f"port={port}; expected 1024 to 65535")
