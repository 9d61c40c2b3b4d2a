"""The commands that take a config: ``bvl train``, ``bvl doctor``, ``bvl bench step``, ``bvl config``."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated

import tyro

from big_vision_lite import config as configs
from big_vision_lite.commands.arguments import parse, parse_with_config
from big_vision_lite.errors import UserError, nearest, writing
from big_vision_lite.system.atomic import write_bytes


@dataclasses.dataclass(frozen=True)
class Train:
    """Train, score and draw. In a folder with a part of the same run, resume it."""

    workdir: Path = Path("runs/NAME")
    """Folder for the run's files, on a disk that all machines share, or gs://BUCKET/FOLDER."""
    profile: str | None = None
    """Steps to profile, as FIRST:LAST, into profile/ of the workdir."""
    watchdog: float | None = None
    """Seconds without progress after which the run says where it hangs and exits, by default half an hour; 0: never."""
    wandb: str | None = None
    """Weights & Biases project that also gets the metrics."""
    seeds: tuple[int, ...] = ()
    """Train these seeds side by side in one program, each in WORKDIR/seedN; needs --train.resident device."""


def train(arguments: list[str]) -> int:
    experiment, options, processes = parse_with_config(Train, arguments, "train", processes=True)
    from big_vision_lite.commands.setup import run_training
    from big_vision_lite.training.watchdog import PATIENCE

    watchdog = PATIENCE if options.watchdog is None else options.watchdog
    if not watchdog >= 0:
        raise UserError(f"--watchdog {watchdog}; expected seconds, or 0 for none")
    return run_training(experiment, options.workdir, processes, options.seeds, profile=options.profile,
                        watchdog=watchdog, wandb=options.wandb)


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check before step 0 that everything a run needs is there, and that data arrives as fast as it is used."""

    workdir: Path = Path("runs/NAME")
    """Folder where the run would be; its disk is checked for space."""


def doctor(arguments: list[str]) -> int:
    experiment, options = parse_with_config(Doctor, arguments, "doctor")
    from big_vision_lite.commands.setup import set_up_jax

    set_up_jax(experiment)
    from big_vision_lite.runs.doctor import print_findings

    return print_findings(experiment, options.workdir)


@dataclasses.dataclass(frozen=True)
class BenchStep:
    """Measure a training step on this machine: seconds, memory by the compiler, and peak memory of the process."""

    repeat: int = 10
    """Steps that are timed."""
    warm_up: int = 2
    """Steps before them."""
    classes: int | None = None
    """Number of classes, to measure on noise instead of the data's first batch; detection then suppresses less."""


def bench_step(arguments: list[str]) -> int:
    experiment, options = parse_with_config(BenchStep, arguments, "bench step")
    from big_vision_lite.commands.setup import set_up_jax

    set_up_jax(experiment)
    from big_vision_lite.launch.preflight import dataset_info
    from big_vision_lite.runs.benchmark import bench_step

    bench_step(experiment, dataset_info(experiment, options.classes), options.repeat, options.warm_up)
    return 0


@dataclasses.dataclass(frozen=True)
class ConfigShow:
    """Print the resolved experiment as JSON."""


def config_show(arguments: list[str]) -> int:
    experiment, _ = parse_with_config(ConfigShow, arguments, "config show")
    print(configs.dumps(experiment), end="")
    return 0


@dataclasses.dataclass(frozen=True)
class ConfigList:
    """List configs and studies with their arguments."""

    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER]")] = None
    """Where to look for them; by default in configs/, or if there is none among those that come with this package."""


def config_list(arguments: list[str]) -> int:
    given = parse(ConfigList, arguments, "bvl config list").folder
    folder = given or Path("configs")
    by_name = given is None and not folder.is_dir()
    if by_name:
        folder = configs.known_configs()
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; bvl config list lists the configs in a folder")
    for path in sorted(folder.rglob("*.py")):
        if info := configs.describe(path):
            kind, summary, arguments = info
            print(f"bvl {configs.KINDS[kind]} {path.relative_to(folder).with_suffix('') if by_name else path}")
            for text in (summary, ", ".join(f"{name}={default or hint}" for name, hint, default, _ in arguments)):
                print(textwrap.fill(text, 80, initial_indent=" " * 4, subsequent_indent=" " * 4))
    return 0


@dataclasses.dataclass(frozen=True)
class ConfigCopy:
    """Copy a config, study or cluster that comes with this package, to edit it."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """As bvl config list shows it, or clusters/NAME.toml."""
    to: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[TO]")] = Path(".")
    """The new file, or a folder for it."""


def config_copy(arguments: list[str]) -> int:
    options = parse(ConfigCopy, arguments, "bvl config copy")
    source, new = _known_file(options.name), options.to / Path(options.name).name
    new = new.with_suffix(source.suffix) if options.to.is_dir() else options.to
    if new.exists():
        raise UserError(f"there is a file {str(new)!r} already; copy to another name: bvl config copy {options.name} "
                        f"{new.with_stem(f'my_{new.stem}')}")
    with writing(repr(str(new))):
        write_bytes(new, source.read_bytes())
    print(new)
    return 0


def _known_file(name: str) -> Path:
    """A file of `config.known_configs` by its name. Raises: UserError."""
    folder = configs.known_configs()
    names = {path.relative_to(folder).with_suffix("" if path.suffix == ".py" else path.suffix).as_posix(): path
             for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".toml")}
    given = name.removeprefix("configs/").removesuffix(".py")
    same = [path for full, path in names.items() if given in (full, full.rpartition("/")[2])]
    if given not in names and len(same) != 1:
        raise UserError(f"no config {name!r} comes with this package"
                        + nearest(name, {*names, *(full.rpartition("/")[2] for full in names)}))
    return names.get(given) or same[0]
