"""The command ``bvl``: finds the command, and brings errors to the person who typed it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from big_vision_lite.errors import UserError, nearest

USAGE = """bvl: how much better does vision get with more data?

  bvl train CONFIG [--workdir DIR] [overrides]   train, score and draw; the same command resumes
  bvl evaluate RUN [--split S] [--step N]        score a checkpoint again
  bvl config show CONFIG [overrides]             print the resolved experiment

CONFIG is a Python file with get_config(...), with arguments as configs/x.py:depth=50,root=/photos.
Every field can be overridden: bvl train CONFIG --help lists them with their defaults.
"""
COMMANDS = ("train", "evaluate", "config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for bad input, 128 + n when signal n ended a run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"no command {arguments[0]!r}" + nearest(arguments[0], COMMANDS))
        from big_vision_lite import commands  # after the cheap checks: it brings in JAX

        return getattr(commands, arguments[0])(arguments[1:])
    except UserError as error:
        print(f"bvl: {error}", file=sys.stderr)
        return 2
