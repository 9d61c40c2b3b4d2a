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
    """Predict from learning curves: the score at sizes that were not tried, and how many images a score takes.

    Takes the folder of a study, a results.csv, or a csv file with a column of sizes and one of errors; optionally with
    split (train or extrapolate), seed and curve (a name).
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.csv|FOLDER")]
    """Csv file with a header, or folder of a study."""
    at: tuple[float, ...] = ()
    """Sizes to predict the score at; by default 2 and 10 times the largest."""
    target: tuple[float, ...] = ()
    """Scores: how many images does each take?"""
    target_error: tuple[float, ...] = ()
    """The same as errors: 1 - accuracy, 1 - mAP."""
    score: str | None = None
    """Column of results.csv, such as validation/mAP; by default the main metric of the runs."""
    lower_is_better: bool = False
    """Direction of --score where it is no run's main metric."""
    chance: float | None = None
    """The score of guessing, where the runs do not tell; of a csv of errors, the error of guessing."""
    law: str | None = None
    """Predict by one law alone: log-linear, power, asymptote, shifted, sigmoid, broken or "broken (2 breaks)"."""
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
    upstream: str | None = None
    """Column of the upstream error: fit downstream against upstream error instead (Abnar et al. 2021)."""
    bootstrap: int = 64
    """Fits per law, to copies of the curve with other noise, from which intervals follow."""
    figure: Path | None = None
    """File (.png or .svg) to draw curves and predictions into."""
    imports: Imports = ()


def laws(arguments: list[str]) -> int:
    options = parse(Laws, arguments, "bvl laws")
    from big_vision_lite.scaling.laws import answers, curves, downstream
    from big_vision_lite.scaling.laws.prediction import TooFewSizes

    check_bootstrap(options.bootstrap)
    if options.figure is not None and options.figure.suffix not in (".png", ".svg"):
        raise UserError(f"--figure {str(options.figure)!r}: expected a name that ends in .png or .svg")
    for name, values in (("--target-error", options.target_error), ("--at", options.at)):
        for value in values:
            if not curves.LEAST <= value <= curves.MOST:
                raise UserError(f"{name} {value:g}: expected numbers above 0, up to {curves.MOST:g}")
    if options.upstream is not None:
        print(downstream.report(options.source, options.upstream, options.error, options.bootstrap))
        return 0
    law = None if options.law is None else _law_number(options.law)
    predictions = []
    found = list(_curves(options))
    for name, get_curve, chance, terms in found:
        errors = [*options.target_error, *(_error(terms, target) for target in options.target)]
        try:
            predicted = _predict(name, get_curve(), chance, terms, law, options)
        except UserError as error:  # other curves may have answers
            if len(found) == 1 and not isinstance(error, TooFewSizes):
                raise
            print(f"{error}\n")
            continue
        predictions.append((predicted, terms))
        for line in answers.in_words(predicted, terms, options.at, errors):
            print(f"  {line}")
        print()
    print("fit, inner, extrapolate: RMS of the log error. inner: of a fit to the sizes up to half the largest, on the\n"
          "rest. Laws in the table describe; the prediction takes all that have enough sizes. It is of one budget:\n"
          "where images seen do not grow with the images, a curve levels off at what the steps can learn, not at what\n"
          "the data holds (bvl advise, of runs that differ in both). docs/scaling_laws.md: how often intervals hold.")
    if options.figure is not None:
        if not predictions:
            raise UserError("--figure: there is nothing to draw, as no curve has an answer")
        from big_vision_lite.scaling.report import figures

        figures.save(figures.draw_predictions(predictions), options.figure)
        print(f"figure: {options.figure}")
    return 0


def _predict(name: str, curve, chance: float | None, terms, law: int | None, options: Laws):
    """Prints the table of laws; returns the prediction by all of them, or by the one with a number."""
    from big_vision_lite.scaling.laws import comparison, prediction
    from big_vision_lite.scaling.laws.families import laws as all_laws

    held_out, sizes = int(curve.held_out.sum()), curve.train.sizes
    print(f"{name}: {curve.x.size - held_out} points at {sizes} sizes" + (f", {held_out} held out" if held_out else "")
          + (f", {terms.budget}" if terms.budget else ""))
    scores = comparison.compare(curve, all_laws(chance))
    print(columns(comparison.table(scores)))
    only = () if law is None else (scores[law].law,)
    if law is not None and scores[law].fit is None:
        raise UserError(f"--law {options.law!r}: {scores[law].note}, the curve has {sizes}")
    predicted = prediction.predict(curve, chance, only, options.bootstrap)
    print(f"by {only[0].name if only else 'all laws together'}:")
    return predicted


def _curves(options: Laws):
    """Yields name, a function that returns the curve, chance-level error and terms of each curve of a csv file or of
    results."""
    from big_vision_lite.scaling.laws import answers, curves

    path = options.source
    if not path.is_dir() and "run" not in curves.read_rows(path)[0]:
        if options.score is not None:
            raise UserError(f"--score {options.score!r}: {path} has no column 'run', so it is no results.csv; give "
                            "--error instead")
        chance = None if options.chance is None else _error(answers.ERRORS, options.chance, "--chance")
        for curve in curves.read_curves(path, options.x, options.error, options.split, options.seed, options.curve):
            yield curve.name or str(path), (lambda curve=curve: curve), chance, answers.ERRORS
        return
    from big_vision_lite.scaling.report import series

    for column in ("x", "error", "split", "seed", "curve"):
        if getattr(options, column) != getattr(Laws, column):
            raise UserError(f"--{column} {getattr(options, column)!r}: {path} holds the results of runs, whose columns "
                            "are known; give --score to choose a metric")
    found = False
    for task, line in series.curves_of(path, options.score, options.lower_is_better, options.imports):
        chance = line.chance if options.chance is None else _error(line.terms, options.chance, "--chance")
        found = True
        name = ", ".join(filter(None, (task, line.label))) or str(path)
        yield name, line.curve, chance, line.terms
    if not found:
        raise UserError(f"{path}: no runs that differ in images alone, so there is no curve; expected two sizes or "
                        "more")


def _error(terms, value: float, option: str = "--target") -> float:
    """A score as an error. Raises: UserError when it is none."""
    from big_vision_lite.scaling.laws import curves

    error = terms.convert(value)
    if not curves.LEAST <= error <= curves.MOST:
        raise UserError(f"{option} {value:g}: expected " + (
            f"a score below {terms.convert(0.0):g}" if terms.higher_is_better else
            f"an error above 0, up to {curves.MOST:g}"))
    return error


def _law_number(name: str) -> int:
    """The place of a law, named whole or by its first word, in `families.laws`. Raises: UserError: there is none."""
    from big_vision_lite.scaling.laws.families import LAWS

    numbers: dict[str, int] = {}
    for number, law in enumerate(LAWS):
        numbers.setdefault(law.name.split(" ")[0], number)
        numbers[law.name] = number
    if name not in numbers:
        raise UserError(f"--law {name!r}: no such law" + nearest(name, numbers))
    return numbers[name]


def check_bootstrap(samples: int) -> None:
    if samples < 20:
        raise UserError(f"--bootstrap {samples}: an interval needs at least 20 samples")


def columns(cells: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html of a run: scores, curves, classes, confusions, predictions, recipe, data, time; or report.html
    and figures/ of studies: curves, laws, tables, predictions, provenance."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FOLDER ...")]
    """Folder of a run; or folders with a results.csv, and of runs to be shown with them: several make one report."""
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
    bootstrap: int = 64
    """Fits per law, from which intervals follow."""
    imports: Imports = ()


def report(arguments: list[str]) -> int:
    options = parse(Report, arguments, "bvl report")
    check_bootstrap(options.bootstrap)
    if options.row is not None and options.table is None:
        raise UserError("--row names a row of a table; give --table as well")
    if not options.folders:
        raise UserError("bvl report needs the folder of a study or of a run: bvl report runs/data_size")
    from big_vision_lite.scaling.report import report as reports
    from big_vision_lite.scaling.report.run_report import write_run_report
    from big_vision_lite.scaling.report.runs import is_run

    if len(options.folders) == 1 and options.table is None and is_run(options.folders[0]):
        for name in ("metric", "lower_is_better"):
            if getattr(options, name):
                raise UserError(f"--{name.replace('_', '-')} is for studies; the report of a run shows all its metrics")
        for line in write_run_report(options.folders[0], options.out, options.imports):
            print(line)
        return 0
    if options.table is not None:
        print(reports.paper_table(options.folders, options.table, options.row, options.imports))
        return 0
    for line in reports.write_report(options.folders, options.out, options.metric, options.lower_is_better,
                                     options.bootstrap, options.imports):
        print(line)
    return 0
