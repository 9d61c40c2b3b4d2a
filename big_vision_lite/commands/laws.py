"""The commands that read results: ``bvl laws`` and ``bvl report``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from big_vision_lite.commands.arguments import parse
from big_vision_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Laws:
    """Fit every law to the learning curves in a csv, choose by extrapolation, and say what an error takes.

    Columns: the size, the error, and where there: split (train or extrapolate), seed, curve (a name).
    """

    file: Annotated[Path, tyro.conf.Positional]
    """A csv with a header."""
    x: str | None = None
    """Column of the size. By default x, images or seen_examples, whichever is there."""
    error: str = "error"
    """Column of the error: above 0, lower is better."""
    split: str = "split"
    """Column that marks rows that no fit may see (extrapolate)."""
    seed: str = "seed"
    """Column that tells runs at one size apart."""
    curve: str = "curve"
    """Column that names curves, when the file has several."""
    reach: tuple[float, ...] = ()
    """Errors: how many images does each take?"""
    law: str | None = None
    """Use this law instead of the one that extrapolates best: log-linear, power, asymptote, shifted or sigmoid."""
    chance: float | None = None
    """The error of guessing, where it is known: the sigmoid law then starts from it."""
    upstream: str | None = None
    """Column of the upstream error: fit downstream against upstream error instead (Abnar et al. 2021)."""
    draws: int = 200
    """Of the bootstrap, for intervals."""
    figure: Path | None = None
    """Draw curves and fits into this file (.png or .svg)."""


def laws(arguments: list[str]) -> int:
    asked = parse(Laws, arguments, "bvl laws")
    from big_vision_lite.scaling import curves, extrapolation, fitting
    from big_vision_lite.scaling.laws import laws as all_laws

    if asked.draws < 20:
        raise UserError(f"--draws {asked.draws}: an interval takes at least 20")
    if asked.figure is not None and asked.figure.suffix not in (".png", ".svg"):
        raise UserError(f"--figure {str(asked.figure)!r}: expected a name that ends in .png or .svg")
    if any(not error > 0 for error in asked.reach):
        raise UserError(f"--reach {min(asked.reach):g}: expected errors above 0")
    if asked.chance is not None and not asked.chance > 0:
        raise UserError(f"--chance {asked.chance:g}: expected an error above 0")
    if asked.upstream is not None:
        print(extrapolation.downstream_report(asked.file, asked.upstream, asked.error, asked.draws))
        return 0
    found = curves.read_curves(asked.file, asked.x, asked.error, asked.split, asked.seed, asked.curve)
    compared = []
    for curve in found:
        comparison = extrapolation.compare(curve, all_laws(asked.chance))
        if asked.law is not None:
            comparison = _choose(comparison, asked.law)
        draws = fitting.bootstrap(comparison.fit, curve, asked.draws)
        compared.append((comparison, draws))
        points = int((~curve.held).sum())
        print(f"{curve.name or asked.file}: {points} points at {curve.train.sizes} sizes"
              + (f", {int(curve.held.sum())} held back" if curve.held.any() else ""))
        print(_columns(extrapolation.table(comparison, draws)))
        for error in asked.reach:
            print(extrapolation.reach(comparison.fit, curve, draws, error))
        print()
    print("fit, inner, extrapolate: root mean square of the log error. inner: fitted to sizes up to half the largest,\n"
          "scored on the rest; the choice goes by it alone. Intervals: 95 %, bootstrap over seeds and points.")
    if asked.figure is not None:
        from big_vision_lite.scaling import figures

        figures.save(figures.draw_laws(compared), asked.figure)
        print(f"drawn: {asked.figure}")
    return 0


def _choose(comparison, name: str):
    """The same comparison with another law. Raises: UserError when there is no such law, or it has no fit."""
    named = {row.law.name.split(" ")[0]: row for row in comparison.rows}
    row = named.get(name.split(" ")[0])
    if row is None:
        raise UserError(f"--law {name!r}: no such law" + nearest(name, named))
    if row.fit is None:
        raise UserError(f"--law {name!r}: {row.note}, the curve has {comparison.curve.train.sizes}")
    return dataclasses.replace(comparison, chosen=row)


def _columns(cells: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html and figures/ of studies and runs: curves, laws, tables, pictures, provenance."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders with results.csv, of studies or made by hand, and of single runs. Several make one report."""
    out: Path | None = None
    """Folder to write to; by default the first of the folders."""
    table: str | None = None
    """Print this table of the paper beside the results, and write nothing: coco, voc07, ... Runs that no study put
    into a row are put there by their configs."""
    metric: str | None = None
    """Column to draw; by default the main metric of the runs."""
    draws: int = 200
    """Of the bootstrap, for intervals."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules beside this package that the classes in runs' configs may come from."""


def report(arguments: list[str]) -> int:
    asked = parse(Report, arguments, "bvl report")
    if asked.draws < 20:
        raise UserError(f"--draws {asked.draws}: an interval takes at least 20")
    if not asked.folders:
        raise UserError("bvl report needs the folder of a study or of a run: bvl report runs/data_size")
    from big_vision_lite.scaling import report as reports

    if asked.table is not None:
        print(reports.paper_table(asked.folders, asked.table, asked.imports))
        return 0
    for line in reports.write(asked.folders, asked.out, asked.metric, asked.draws, asked.imports):
        print(line)
    return 0
