"""The command ``bvl``: finds and runs a command, and reports bad input in one line."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

from big_vision_lite import __version__
from big_vision_lite.errors import UserError, exit_code, nearest


class Command(NamedTuple):
    """A line of the usage text."""

    name: str
    arguments: str
    summary: str
    function: str
    """As MODULE.FUNCTION of `commands`."""


COMMANDS = {command.name: command for command in (
    Command("train", "CONFIG", "train, score and draw; run it again to resume", "train.train"),
    Command("finetune", "SOURCE ...", "pretrained weights (--from) onto your own data", "finetune.finetune"),
    Command("doctor", "CONFIG", "check data, memory and speed before step 0", "train.doctor"),
    Command("evaluate", "RUN", "score a checkpoint again, or on another SOURCE", "runs.evaluate"),
    Command("probe", "RUN", "score frozen features: few-shot, kNN, linear", "runs.probe"),
    Command("predict", "RUN IMAGE ...", "label images or folders: pictures, masks, JSON", "runs.predict"),
    Command("pseudolabel", "RUN", "label images by a run, to learn from them", "runs.pseudolabel"),
    Command("export", "RUN", "share or deploy: hf-folder, StableHLO, ONNX, ...", "export.export"),
    Command("config show", "CONFIG", "print the resolved experiment", "train.config_show"),
    Command("config list", "[FOLDER]", "list configs and studies with their arguments", "train.config_list"),
    Command("config copy", "NAME [TO]", "copy a config of this package, to edit it", "train.config_copy"),
    Command("study", "STUDY", "run the unfinished experiments of a study", "study.study"),
    Command("report", "FOLDER ...", "one page about a run, or about studies", "laws.report"),
    Command("compare", "RUN RUN ...", "scores, curves and configs of runs side by side", "compare.compare"),
    Command("laws", "FILE.csv|FOLDER", "what would more images buy? with intervals", "laws.laws"),
    Command("advise", "FOLDER ...", "the best run for a budget, and what more would buy", "advise.advise"),
    Command("preflight", "CONFIG", "memory and speed on hardware you do not have yet", "launch.preflight"),
    Command("launch", "CONFIG", "print or submit the job script", "launch.launch"),
    Command("data inspect", "SOURCE", "features, sizes, classes and a contact sheet", "data.inspect"),
    Command("data prepare", "SOURCE", "write a TFDS dataset of ArrayRecord files", "data.prepare"),
    Command("data index", "SOURCE", "index labels once, for all machines of a run", "data.index"),
    Command("data hold-out", "FOLDER", "put training images aside for validation", "data.hold_out"),
    Command("data score", "RUN", "score images, to keep those worth keeping", "data.score"),
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
         configs/image_folder.py:root=/photos,depth=50. One that comes with
         this package needs only its name, as bvl config list shows it:
         image_folder:root=/photos. --FIELD VALUE overrides a field of the
         experiment. In quotes, a value may hold commas and =:
         "x.py:init='a,b=c',depth=50". A STUDY has get_study(...).
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
    ended it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    interrupted = _note_ctrl_c()
    try:
        _check_words(arguments)
        return _run([word for word in arguments if word != "--debug"])
    except BrokenPipeError:  # the reader of the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("bvl: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if interrupted:  # some libraries turn a KeyboardInterrupt into another error, as compiled modules at import
            print("bvl: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        return exit_code(error, debug="--debug" in arguments)


def _note_ctrl_c() -> list[int]:
    """A list that gets an entry with each Ctrl-C, unless this process ignores it."""
    interrupted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        interrupted.append(signum)
        signal.default_int_handler(signum, frame)

    if (threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN):
        signal.signal(signal.SIGINT, note)
    return interrupted


def _check_words(arguments: Sequence[str]) -> None:
    """Raises: UserError for an empty argument, which would stand for this folder, and for one that is no text."""
    for number, word in enumerate(arguments, 1):
        if not word or re.fullmatch(r"--[\w.-]+=", word):
            raise UserError(f"argument {number}, {word!r}, is empty; is a variable of the shell unset?")
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"argument {number}, {word!r}, is not UTF-8; rename the file") from None


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
