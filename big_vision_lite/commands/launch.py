"""The commands for other machines: ``bvl preflight`` predicts a run there, ``bvl launch`` starts it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import tyro

from big_vision_lite import config as configs
from big_vision_lite.commands.arguments import HELP, on_one_line, parse, parse_with_config, require_config, run_name
from big_vision_lite.errors import UserError, writing


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Compile a run's step for hardware you do not have yet: does it fit, how fast can it be, how long will it take?

    Exits with 1 when it does not fit."""

    topology: str = "v5e:4x4"
    """v5e:4x4, v4-32, v5litepod-16 (compiled by libtpu), cpu:N (compiled) or gpu:h100:8 (counted)."""
    classes: int | None = None
    """Number of the model's classes, where its data is not here; by default read from the data."""
    decode_rate: float | None = None
    """Images/s that one core of a host decodes; by default assumed."""
    image_bytes: float | None = None
    """Bytes of a stored image, for what hosts read; by default assumed."""
    share: float | None = None
    """Share of the roofline's speed that the run reaches; by default assumed."""
    json: bool = False
    """Print JSON, with the source of each figure."""


def preflight(arguments: list[str]) -> int:
    experiment, options = parse_with_config(Preflight, arguments, "preflight")
    import jax

    jax.config.update("jax_platforms", "cpu")  # the target is described, not used; local accelerators stay free
    from rich.console import Console

    from big_vision_lite.launch.accelerators import parse_topology
    from big_vision_lite.launch.compiled import request_cpu_devices
    from big_vision_lite.launch.preflight import dataset_info, preflight, preflight_table

    request_cpu_devices(parse_topology(options.topology))
    console = Console(highlight=False, stderr=options.json)
    with console.status(f"compiling for {options.topology}"):
        result = preflight(experiment, options.topology, dataset_info(experiment, options.classes),
                           options.decode_rate, options.share, options.image_bytes)
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        console.print(preflight_table(result))
    return int(result.fits is False)


@dataclasses.dataclass(frozen=True)
class Launch:
    """Print the job script that starts a run elsewhere, or submit it. All other options are those of `bvl train`."""

    cluster: Annotated[Path, tyro.conf.arg(metavar="FILE.toml")]
    """Where to run, such as configs/clusters/slurm.toml."""
    name: str | None = None
    """Name of the run; by default the config's."""
    out: Path | None = None
    """Folder to write the files to, instead of printing them."""
    run: bool = False
    """Write the files (to launches/NAME, or --out) and start the run."""


def launch(arguments: list[str]) -> int:
    if not set(HELP).isdisjoint(arguments):
        parse(Launch, ["--help"], "bvl launch CONFIG")
    from big_vision_lite.commands.train import Train

    spec = require_config(arguments, "launch")
    with on_one_line("bvl launch CONFIG"):
        options, overrides = tyro.cli(Launch, args=arguments[1:], prog="bvl launch CONFIG", registry=configs.PARSERS,
                                      return_unknown_args=True)
    parse_with_config(Train, [spec, *overrides], "launch", processes=True)  # only to check them
    from big_vision_lite.launch.clusters import read_cluster
    from big_vision_lite.launch.render import cloud_name, render

    name = options.name or cloud_name(run_name(spec))
    cluster = read_cluster(options.cluster)
    rendered = render(cluster, name, spec, overrides)
    if not options.run and not options.out:
        for file, text in rendered.files.items():
            print(f"==> {file} <==\n{text}")
        print(f"==> started by <==\n{' '.join(rendered.command).replace('{folder}/', '')}")
        return 0
    folder = options.out or Path("launches") / name
    with writing(f"to {str(folder)!r}", "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in rendered.files.items():
            (folder / file).write_text(text)
    if not options.run:
        print(f"wrote {', '.join(str(folder / file) for file in rendered.files)}")
        return 0
    if shutil.which(cluster.program) is None:
        raise UserError(f"{cluster.program} is not installed here; --run for kind {cluster.kind!r} needs it. The files "
                        f"are in {folder}")
    return subprocess.run([word.replace("{folder}", str(folder)) for word in rendered.command], check=False).returncode
