"""The command ``bvl``: finds and runs a command, and reports bad input in one line."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from big_vision_lite import __version__
from big_vision_lite.errors import UserError, first_line, nearest


class Command(NamedTuple):
    """A line of the usage text."""

    name: str
    arguments: str
    summary: str
    function: str
    """As MODULE.FUNCTION of `commands`."""


COMMANDS = {command.name: command for command in (
    Command("train", "CONFIG", "train, score and draw; run it again to resume", "train.train"),
    Command("doctor", "CONFIG", "check data, memory and speed before step 0", "train.doctor"),
    Command("evaluate", "RUN", "score a checkpoint again, or on another SOURCE", "runs.evaluate"),
    Command("probe", "RUN", "score frozen features: few-shot, kNN, linear", "runs.probe"),
    Command("predict", "RUN IMAGE ...", "label or segment images: pictures and JSON", "runs.predict"),
    Command("config show", "CONFIG", "print the resolved experiment", "train.config_show"),
    Command("config list", "[FOLDER]", "list configs and studies with their arguments", "train.config_list"),
    Command("study", "STUDY", "run the unfinished experiments of a study", "study.study"),
    Command("report", "FOLDER ...", "figures, tables and scaling laws on one page", "laws.report"),
    Command("laws", "FILE.csv", "fit scaling laws: how many images for which error?", "laws.laws"),
    Command("preflight", "CONFIG", "memory and speed on hardware you do not have yet", "launch.preflight"),
    Command("launch", "CONFIG", "print or submit the job script", "launch.launch"),
    Command("data inspect", "SOURCE", "features, sizes, classes and a contact sheet", "data.inspect"),
    Command("data prepare", "SOURCE", "write a TFDS dataset of ArrayRecord files", "data.prepare"),
    Command("data duplicates", "", "find near-duplicates between sources", "data.duplicates"),
    Command("weights import", "FILE", "make a run from weights of torchvision, timm, BiT", "weights.import_"),
    Command("weights export", "RUN", "write weights for torchvision, timm or BiT", "weights.export"),
    Command("bench step", "CONFIG", "time and memory of a training step", "train.bench_step"),
)}
FOOT = """
bvl COMMAND --help shows a command's options, and bvl train CONFIG --help a
config's arguments as well. bvl --version prints the version. With --debug,
any command shows the traceback of an error.

CONFIG   a Python file with get_config(...), its arguments after a colon:
         configs/image_folder.py:root=/photos,depth=50. --FIELD VALUE overrides
         a field of the experiment. A STUDY has get_study(...).
RUN      the folder of a run, such as runs/quickstart.
SOURCE   a folder of images, of images/ and masks/, or of tar files, a VOC tree,
         a COCO json, a csv, the name of a TFDS dataset, or a CONFIG, for what
         it trains on. Fields follow a colon: /photos:split=val."""


def usage(group: str = "") -> str:
    """The commands, or those of a group such as ``data``, one per line."""
    lines = [f"  {f'bvl {command.name} {command.arguments}':28}{command.summary}" for command in COMMANDS.values()
             if not group or command.name.startswith(f"{group} ")]
    first = f"usage: bvl {group} COMMAND" if group else "bvl: how much better does vision get with more data?"
    return "\n".join((first, "", *lines, *([] if group else [FOOT])))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for bad input, 1 for an error of this package, 128 + n when signal n
    ended a run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        return _run([argument for argument in arguments if argument != "--debug"])
    except BrokenPipeError:  # the reader of the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (UserError, OSError, MemoryError) as error:  # a disk, a network, or data too large: not this package's fault
        if debug:
            traceback.print_exc()
        name = getattr(error, "filename", None)
        print(f"bvl: {f'{name}: ' if name else ''}{error if isinstance(error, UserError) else first_line(error)}",
              file=sys.stderr)
        return 2
    except Exception as error:
        traceback.print_exc()
        print(f"bvl: this is a bug of big_vision_lite {__version__} ({type(error).__name__}: {first_line(error)}); "
              "please report it with the lines above", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    match arguments:
        case ["--version", *_]:
            print(f"big_vision_lite {__version__}")
        case [] | ["-h" | "--help", *_]:
            print(usage())
        case [group] | [group, "-h" | "--help", *_] if group in groups:
            print(usage(group))
        case [*_]:
            size = 2 if arguments[0] in groups else 1
            name = " ".join(arguments[:size])
            if name not in COMMANDS:
                valid = COMMANDS if size == 2 else {*COMMANDS, *groups}
                raise UserError(f"no command {name!r}" + nearest(name, valid))
            module, function = COMMANDS[name].function.split(".")
            run = getattr(importlib.import_module(f"big_vision_lite.commands.{module}"), function)
            return run(arguments[size:])
    return 0
