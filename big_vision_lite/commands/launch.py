"""The commands for other machines: ``bvl preflight`` says what a run would take there, ``bvl launch`` starts it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

from big_vision_lite.commands.arguments import Flat, load, parse
from big_vision_lite.commands.runs import Train
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Compile a run's own step for devices that are not here: does it fit, how fast can it be, how long will it take?

    Exits with 1 when it does not fit."""

    experiment: Flat
    topology: str
    """v5e:4x4, v4-32, v5litepod-16 (compiled by libtpu), cpu:N (compiled) or gpu:h100:8 (counted)."""
    classes: int | None = None
    """Of the model, to look at the step where its data is not. None: open the data."""
    decode_rate: float | None = None
    """Images a second that one core of a host decodes; None: assumed."""
    share: float | None = None
    """Of the roofline's speed, that the run reaches; None: assumed."""
    json: bool = False
    """Print JSON, with where each figure comes from."""


def preflight(arguments: list[str]) -> int:
    _, experiment = load(arguments, "preflight")
    asked = parse(Preflight, arguments[1:], f"bvl preflight {arguments[0]}", Preflight(experiment, "v5e:4x4"))
    # The devices are described, not used; those that are here stay free for others.
    import jax

    jax.config.update("jax_platforms", "cpu")
    from rich.console import Console

    from big_vision_lite.launch.compiled import show_cpu_devices
    from big_vision_lite.launch.preflight import described, preflight, table
    from big_vision_lite.launch.slices import slice_of

    show_cpu_devices(slice_of(asked.topology))
    console = Console(highlight=False, stderr=asked.json)
    with console.status(f"compiling for {asked.topology}"):
        found = preflight(asked.experiment, asked.topology, described(asked.experiment, asked.classes),
                          asked.decode_rate, asked.share)
    if asked.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        console.print(table(found))
    return int(found.fits is False)


def launch(arguments: list[str]) -> int:
    """Prints the scripts; with --run runs them. What is not its own goes to `bvl train`, and is checked as there."""
    own = argparse.ArgumentParser("bvl launch CONFIG", allow_abbrev=False, description="Render what starts a run "
                                  "elsewhere, and print it. All other options are those of bvl train.")
    own.add_argument("--on", required=True, metavar="FILE.toml", type=Path, help="where; see configs/clusters")
    own.add_argument("--name", help="of the run; by default the config's")
    own.add_argument("--out", type=Path, metavar="DIR", help="write the files there instead of printing them")
    own.add_argument("--run", action="store_true", help="write the files (to launches/NAME, or --out) and start it")
    if arguments[:1] in (["-h"], ["--help"]):
        own.print_help()
        return 0
    _, experiment = load(arguments, "launch")
    asked, overrides = own.parse_known_args(arguments[1:])
    parse(Train, overrides, f"bvl launch {arguments[0]}", Train(experiment, Path("runs")))
    from big_vision_lite.launch.clusters import read
    from big_vision_lite.launch.render import name_of, render

    name = asked.name or name_of(arguments[0])
    cluster = read(asked.on)
    rendered = render(cluster, name, arguments[0], overrides)
    if not asked.run and not asked.out:
        for file, text in rendered.files.items():
            print(f"==> {file} <==\n{text}")
        print(f"==> started by <==\n{' '.join(rendered.command).replace('{folder}/', '')}")
        return 0
    folder = asked.out or Path("launches") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in rendered.files.items():
            (folder / file).write_text(text)
    except OSError as error:
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror or error}; choose another --out") from None
    if not asked.run:
        print(f"wrote {', '.join(str(folder / file) for file in rendered.files)}")
        return 0
    if shutil.which(cluster.program) is None:
        raise UserError(f"{cluster.program} is not installed here; --run for kind {cluster.kind!r} needs it. The files "
                        f"are in {folder}")
    return subprocess.run([word.replace("{folder}", str(folder)) for word in rendered.command], check=False).returncode
