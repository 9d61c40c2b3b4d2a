"""The command ``bvl``: finds the command, and brings errors to the person who typed it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from big_vision_lite.errors import UserError, nearest

USAGE = """bvl: how much better does vision get with more data?

  bvl train CONFIG [--workdir DIR] [overrides]   train, score and draw; the same command resumes
  bvl evaluate RUN [--split S] [--step N]        score a checkpoint again; --source SOURCE scores other data, and
                                                 --submission FILE writes detections as COCO's server takes them
  bvl probe RUN [--train SOURCE --test SOURCE]   what a run's frozen features are worth
  bvl predict RUN IMAGE ...                      labels, boxes or masks of your own images, drawn and as JSON
  bvl config show CONFIG [overrides]             print the resolved experiment
  bvl doctor CONFIG [overrides]                  check before step 0 that all is there and fast enough

  bvl study STUDY --workdir DIR                  many runs, what is missing of them, in order
  bvl report DIR                                 figures, tables and fitted laws of a study, in one page
  bvl laws FILE.csv                              fit and compare scaling laws: how many images for which error?

  bvl preflight CONFIG --topology v5e:4x4        memory, speed and hours on devices that are not there
  bvl launch CONFIG --on CLUSTER.toml            what starts it on a cluster, printed or run

  bvl data inspect SOURCE                        features, sizes and classes of a source, and a contact sheet
  bvl data prepare SOURCE --name NAME            any source as a TFDS data set of ArrayRecord files
  bvl data duplicates --train SOURCE --against SOURCE ...
                                                 near-duplicates, and the list that leaves them out
  bvl weights import FILE --out RUN              a run of torchvision's, timm's or BiT's weights
  bvl weights export RUN --to FORM --out FILE    a run's network for torchvision, timm or BiT
  bvl bench input                                images a second of this pipeline and of others, side by side
  bvl bench step CONFIG                          seconds and memory of a config's training step
  bvl bench save | resume | processes            what a save, a start and working together cost

SOURCE is a folder of images, of images/ and masks/, a VOC tree, a folder of tar files, a COCO json, a csv, the name of
a TFDS data set, or a config file, which stands for what it trains on; fields follow as in /photos:split=val.
CONFIG is a Python file with get_config(...), with arguments as configs/x.py:depth=50,root=/photos.
Every field can be overridden: bvl train CONFIG --help lists them with their defaults.
"""
COMMANDS = {"train": "runs", "evaluate": "runs", "probe": "runs", "config": "runs", "doctor": "checks", "data": "data",
            "weights": "weights", "bench": "checks", "predict": "predict", "study": "study", "laws": "laws",
            "report": "laws", "preflight": "launch", "launch": "launch"}
"""Each command and the module of `commands` that has it."""

_OF_A_CONFIG = {"train": "CONFIG", "doctor": "CONFIG", "preflight": "CONFIG", "study": "STUDY"}
"""Commands whose options have the defaults of the file that comes first."""


def _usage(command: str) -> str:
    lines = USAGE.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"  bvl {command} "))
    return (f"{lines[first].strip()}\n\n"
            f"bvl {command} {_OF_A_CONFIG[command]} --help lists all options with their defaults.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for bad input, 128 + n when signal n ended a run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] in _OF_A_CONFIG and arguments[1:] in (["-h"], ["--help"]):
        print(_usage(arguments[0]))
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"no command {arguments[0]!r}" + nearest(arguments[0], COMMANDS))
        module = importlib.import_module(f"big_vision_lite.commands.{COMMANDS[arguments[0]]}")  # some bring in JAX
        return getattr(module, arguments[0])(arguments[1:])
    except UserError as error:
        print(f"bvl: {error}", file=sys.stderr)
        return 2
