"""The command ``bvl compare``: runs side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from big_vision_lite.commands.arguments import Imports, parse


@dataclasses.dataclass(frozen=True)
class Compare:
    """Print scores of runs and the fields in which they differ; write them, with curves, as csv and HTML."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")]
    """Folders of runs, finished or not."""
    out: Path = Path("comparison")
    """Folder for compare.csv and compare.html."""
    imports: Imports = ()


def compare(arguments: list[str]) -> int:
    options = parse(Compare, arguments, "bvl compare")
    from big_vision_lite.commands.laws import columns
    from big_vision_lite.scaling.report.comparison import Comparison, write_comparison

    comparison = Comparison(options.runs, options.imports)
    for line in comparison.conclusions():
        print(line)
    print(f"\n{columns(comparison.table())}")
    fields = comparison.differences()
    print(f"\n{columns(fields)}\n" if fields[1:] else "\nthe configs are the same\n")
    for line in write_comparison(comparison, options.out):
        print(line)
    return 0
