"""The commands that read results: ``bvl laws`` and ``bvl report``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from big_vision_lite.commands.arguments import Imports, parse
from big_vision_lite.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Laws:
    """Fit laws to the learning curves in a csv file, choose by extrapolation, and say how many images an error takes.

    Columns: the size, the error, and optionally split (train or extrapolate), seed and curve (a name).
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.csv")]
    """Csv file with a header."""
    x: str | None = None
    """Column of the size; by default x, images or seen_examples, whichever exists."""
    error: str = "error"
    """Column of the error: above 0, lower is better."""
    split: str = "split"
    """Column that marks held-out rows with "extrapolate"."""
    seed: str = "seed"
    """Column that distinguishes runs of equal size."""
    curve: str = "curve"
    """Column that names the curves of a file with several."""
    target_error: tuple[float, ...] = ()
    """Errors: how many images does each take?"""
    law: str | None = None
    """Law to use instead of the one that extrapolates best: log-linear, power, asymptote, shifted or sigmoid."""
    chance: float | None = None
    """Known chance-level error, from which the sigmoid law then starts."""
    upstream: str | None = None
    """Column of the upstream error: fit downstream against upstream error instead (Abnar et al. 2021)."""
    bootstrap: int = 200
    """Bootstrap samples for the intervals."""
    figure: Path | None = None
    """File (.png or .svg) to draw curves and laws into."""


def laws(arguments: list[str]) -> int:
    options = parse(Laws, arguments, "bvl laws")
    from big_vision_lite.scaling.laws import curves, extrapolation, fitting
    from big_vision_lite.scaling.laws.families import laws as all_laws

    _check_bootstrap(options.bootstrap)
    if options.figure is not None and options.figure.suffix not in (".png", ".svg"):
        raise UserError(f"--figure {str(options.figure)!r}: expected a name that ends in .png or .svg")
    for name, errors in (("--target-error", options.target_error), ("--chance", (options.chance,))):
        for error in errors:
            if error is not None and not curves.LEAST <= error <= curves.MOST:
                raise UserError(f"{name} {error:g}: expected errors above 0, up to {curves.MOST:g}")
    if options.upstream is not None:
        print(extrapolation.downstream_report(options.file, options.upstream, options.error, options.bootstrap))
        return 0
    fitted = []
    for curve in curves.read_curves(options.file, options.x, options.error, options.split, options.seed, options.curve):
        comparison = extrapolation.compare(curve, all_laws(options.chance))
        if options.law is not None:
            comparison = _choose(comparison, options.law)
        law = extrapolation.ChosenLaw(comparison, fitting.bootstrap(comparison.fit, curve, options.bootstrap))
        fitted.append(law)
        points = int((~curve.held_out).sum())
        print(f"{curve.name or options.file}: {points} points at {curve.train.sizes} sizes"
              + (f", {int(curve.held_out.sum())} held out" if curve.held_out.any() else ""))
        print(_columns(extrapolation.law_table(law)))
        for error in options.target_error:
            print(extrapolation.estimate_size(law, error))
        print()
    print("fit, inner, extrapolate: RMS of the log error. inner: of a fit to the sizes up to half the largest, on the\n"
          "rest; this alone is the criterion of the choice. Intervals: 95 %, bootstrap over seeds and points.")
    if options.figure is not None:
        from big_vision_lite.scaling.report import figures

        figures.save(figures.draw_laws(fitted), options.figure)
        print(f"figure: {options.figure}")
    return 0


def _check_bootstrap(samples: int) -> None:
    if samples < 20:
        raise UserError(f"--bootstrap {samples}: an interval needs at least 20 samples")


def _choose(comparison, name: str):
    """The same comparison with another law. Raises: UserError when there is no such law, or it was not fitted."""
    by_name = {score.law.name.split(" ")[0]: score for score in comparison.scores}
    score = by_name.get(name.split(" ")[0])
    if score is None:
        raise UserError(f"--law {name!r}: no such law" + nearest(name, by_name))
    if score.fit is None:
        raise UserError(f"--law {name!r}: {score.note}, the curve has {comparison.curve.train.sizes}")
    return dataclasses.replace(comparison, chosen=score)


def _columns(cells: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html and figures/ of studies and runs: curves, laws, tables, predictions, provenance."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER ...")]
    """Folders with a results.csv, and of single runs; several make one report."""
    out: Path | None = None
    """Folder to write to; by default the first of the folders."""
    table: str | None = None
    """Table of the paper, such as coco, to print beside the results; writes nothing."""
    row: str | None = None
    """Row of the table, such as "ImageNet", for the runs that their study puts into none."""
    metric: str | None = None
    """Column to draw; by default the main metric of the runs."""
    lower_is_better: bool = False
    """Direction of --metric where it is no run's main metric."""
    bootstrap: int = 200
    """Bootstrap samples for the intervals."""
    imports: Imports = ()


def report(arguments: list[str]) -> int:
    options = parse(Report, arguments, "bvl report")
    _check_bootstrap(options.bootstrap)
    if options.row is not None and options.table is None:
        raise UserError("--row names a row of a table; give --table as well")
    if not options.folders:
        raise UserError("bvl report needs the folder of a study or of a run: bvl report runs/data_size")
    from big_vision_lite.scaling.report import report as reports

    if options.table is not None:
        print(reports.paper_table(options.folders, options.table, options.row, options.imports))
        return 0
    for line in reports.write_report(options.folders, options.out, options.metric, options.lower_is_better,
                                     options.bootstrap, options.imports):
        print(line)
    return 0
