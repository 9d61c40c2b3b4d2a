"""The report of a study: report.html, which needs no other file, and its figures as PNG and SVG.

It shows what results.csv holds, in this order: the best runs and what more images would buy, in short; curves of each
task with predictions; the effect of each factor; tables; pictures; recipe; where the numbers come from; and what is
missing, which is never an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.scaling.laws import answers, comparison, families, prediction
from big_vision_lite.scaling.laws.curves import format_count, read_rows
from big_vision_lite.scaling.laws.prediction import Prediction
from big_vision_lite.scaling.paper import tables
from big_vision_lite.scaling.report import figures, html, joint, parts, series, words
from big_vision_lite.scaling.report.pictures import jpeg
from big_vision_lite.scaling.report.series import Metric, Result, Results, Series
from big_vision_lite.scaling.studies.results import write_file

PICTURES = 4
"""Runs per task whose predictions are shown: those with most images."""
_FACTORS = {
    "depth": ("Capacity", "one line per depth"),
    "noise": ("Noise", "share of labels that are wrong"),
    "classes": ("Vocabulary", "number of classes"),
    "frozen": ("Frozen against fine-tuned", "whether the pretrained layers are frozen"),
    "init": ("Initialisation", "what training starts from"),
}


@dataclasses.dataclass
class _Page:
    """The parts of a report so far."""

    folder: Path
    parts: list[str]
    notes: list[str]
    drawn: set[str]
    conclusions: list[str] = dataclasses.field(default_factory=list)
    """What comes first."""

    def draw(self, name: str, make: Callable[[], Any], caption: str) -> None:
        """Draw a figure, save it in figures/ and show it."""
        figure = make()
        stem = name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "figure"
        number = 2
        while name in self.drawn:
            name, number = f"{stem}-{number}", number + 1
        self.drawn.add(name)
        for form in ("png", "svg"):
            drawn = figures.to_bytes(figure, form)
            write_file(self.folder / "figures" / f"{name}.{form}", drawn)
        self.parts.append(html.picture(drawn, "svg+xml", caption, caption))


def write_report(folders: Sequence[Path], out: Path | None = None, metric: str | None = None,
                 lower_is_better: bool = False, bootstrap: int = prediction.SAMPLES, imports: Sequence[str] = ()
                 ) -> list[str]:
    """Write the report of the results.csv, or the run, of each folder. Returns lines that say what was written and what
    is missing.

    Args:
      folders: of studies or runs.
      out: folder to write to; by default the first.
      metric: column to draw; by default the main metric of most runs of a task and study.
      lower_is_better: direction of a metric that is no run's main metric.
      bootstrap: fits per law, from which intervals follow.

    Raises:
      UserError: as `series.read_results`, no such metric, or a file that cannot be written.
    """
    results = series.read_results(folders, imports)
    folder = out or folders[0]
    if metric is not None and metric not in results.metrics:
        raise UserError(f"no metric {metric!r} in {folders[0] / 'results.csv'}" + nearest(metric, results.metrics))
    page = _Page(folder, [], list(results.notes), set())
    tasks = results.tasks()
    if not tasks:
        page.notes.append("no run is finished: there is nothing to draw yet")
    for study, study_runs in series.by_study(results.runs).items():
        rows = [row for row in results.rows if row.get("study", "") == study]
        if joint.varies(rows):
            for part in joint.section(study, study_runs[0].folder, rows, bootstrap, page.draw, page.notes):
                page.parts.append(part)
    for task, runs in tasks.items():
        metrics = {study: _choose_metric(page, task, study_runs, results.metrics, metric, lower_is_better)
                   for study, study_runs in series.by_study(runs).items()}
        _task(page, task, runs, metrics, bootstrap)
    page.parts += _paper_tables(results)
    page.parts += _pictures(tasks, page.notes)
    page.parts += parts.recipe(results, imports)
    page.parts += _provenance(folders, results)
    studies = sorted({run.factors["study"] for run in results.runs if "study" in run.factors})
    title = ", ".join(studies) or folder.resolve().name
    head = [html.heading(title, 1), html.paragraph(_counts(results), "soft")]
    if page.conclusions:
        head.append(html.points(page.conclusions, "answer"))
    missing = [html.heading("What is missing"), html.points(page.notes)] if page.notes else []
    target = folder / "report.html"
    write_file(target, html.page(title, [*head, *page.parts, *missing]))
    return [*page.notes, f"{len(page.drawn)} figures as PNG and SVG: {folder / 'figures'}", f"report: {target}"]


def _choose_metric(page: _Page, task: str, runs: Sequence[Result], metrics: Sequence[str], name: str | None,
                   lower_is_better: bool) -> Metric:
    """The metric of a given name if some run has it, else the main metric, else, with a note, the first column."""
    if name is not None and any(name in run.metrics for run in runs):
        main = next((run.main for run in runs if run.main is not None and run.main.name == name), None)
        return main or Metric(name, not lower_is_better)
    if (main := series.main_metric(runs)) is not None:
        return main
    first = next(metric for metric in metrics if any(metric in run.metrics for run in runs))
    page.notes.append(f"{task}: no run names its main metric; {first} is drawn, "
                      f"{'lower' if lower_is_better else 'higher'} values are better. Add the columns main_metric, "
                      "direction and unit, or give --metric and --lower-is-better")
    return Metric(first, not lower_is_better)


def _counts(results: Results) -> str:
    runs = len({(row.get("study"), row["run"]) for row in results.rows})
    sizes = sorted({run.images for run in results.runs if run.images})
    text = f"{len(results.runs)} of {runs} runs are finished and have metrics"
    if sizes:
        text += f"; {format_count(sizes[0])} to {format_count(sizes[-1])} images"
    return text + ". A point is a run, a mark the mean over seeds, a bar the 95 % interval of that mean."


def _task(page: _Page, task: str, runs: Sequence[Result], metrics: dict[str, Metric], bootstrap: int) -> None:
    """The section of a task. ``metrics``: the one to draw for each study."""
    page.parts.append(html.heading(words.title(task)))
    for study, metric in metrics.items():
        page.conclusions += parts.best(task, [run for run in runs if run.factors.get("study", "") == study], metric)
    _sizes(page, task, runs, metrics, bootstrap)
    for study, study_runs in series.by_study(runs).items():
        for factor in (*_FACTORS, *_own_factors(study_runs)):
            _factor(page, f"{task}, {study}" if len(metrics) > 1 else task, study_runs, metrics[study], factor)
    for metric in dict.fromkeys(metrics.values()):
        page.parts += _table(runs, metric)
    page.parts += parts.probes(runs)


def _sizes(page: _Page, task: str, runs: Sequence[Result], metrics: dict[str, Metric], bootstrap: int) -> None:
    """Metric against images, what is predicted for each study's main series, and the table of laws."""
    several = len(set(metrics.values())) > 1
    shown = []
    for study, study_runs in series.by_study(runs).items():
        name = words.metric(metrics[study].name)
        label = f"{study} ({name})" if several else study if len(metrics) > 1 else name
        shown.append(series.main_series(study_runs, metrics[study], label))
    shown = sorted(filter(None, shown), key=lambda line: -len(line.sizes()))
    enough = min(4, len(shown[0].sizes())) if shown else 0  # fewer make no curve beside those that have more
    shown = [line for line in shown if len(line.sizes()) >= max(enough, 2)]
    if not shown:
        page.notes.append(f"{task}: no runs with two or more numbers of images, so there is no curve")
        return
    predictions: list[Prediction | None] = []
    said: list[str] = []
    for line in shown:
        predicted = None
        name = f"{task}, {line.label}" if len(shown) > 1 else task
        try:
            predicted = prediction.predict(line.curve(), line.chance, samples=bootstrap)
        except UserError as error:
            page.notes.append(f"{name}: nothing was predicted: {error}")
        else:
            said += _answers(name, line, predicted)
            page.conclusions.append(f"{name}: {answers.value_at(predicted, 10 * predicted.largest, line.terms)}")
        predictions.append(predicted)
    drawn = ", ".join(dict.fromkeys(words.label(line.metric) for line in shown))
    budgets = "; ".join(dict.fromkeys(f"{line.label}: {line.budget}" if len(shown) > 1 else line.budget
                                      for line in shown if line.budget))
    caption = f"{words.title(drawn)} against images" + (f", {budgets}" if budgets else "") + (
        f"; predictions by all laws together, up to {figures.BEYOND:g} times the largest size, with bands of 50 % and "
        "95 %" if any(predictions) else "")
    page.draw(f"{task} images", lambda: figures.draw_sizes(shown, predictions, task), caption)
    page.parts += said


def _answers(name: str, line: Series, predicted: Prediction) -> Iterator[str]:
    """What more images would buy, in words; and the laws one by one."""
    curve, terms = predicted.curve, line.terms
    best = min(curve.error[curve.x == x].mean() for x in set(curve.x))
    less = "a tenth less error than the best so far, " + answers.size_for(predicted, float(f"{0.9 * best:.3g}"), terms)
    yield html.heading(f"More images{f' {line.budget}' * bool(line.budget)}: {name}", 3)
    yield html.points([*answers.in_words(predicted, terms), less], "answer")
    yield html.paragraph(f"Predicted by all laws together, {line.budget or 'for the training budget of these runs'}: "
                         "with another budget the curve levels off elsewhere. The largest sizes count most: the "
                         "smallest may lie off the line. Intervals are of the curve; a single run scatters around it.",
                         "soft")
    yield html.table(comparison.table(comparison.compare(curve, families.laws(predicted.chance))))
    yield html.paragraph("The laws one by one, as information: none of them is chosen. Numbers are RMS of the log "
                         "error. fit: of a fit to all sizes. inner: at the sizes above half the largest, of a fit to "
                         "the others.", "soft")


def _own_factors(runs: Sequence[Result]) -> list[str]:
    return sorted({name for run in runs for name in run.factors} - {*_FACTORS, "study", "table", "row", "scale"})


def _factor(page: _Page, what: str, runs: Sequence[Result], metric: Metric, factor: str) -> None:
    """The effect of one factor in a study, all others equal. Where it does not vary, nothing is shown."""
    levels = series.series_along(runs, metric, factor)
    title, meaning = _FACTORS.get(factor, (factor, factor))
    if not levels:
        if len({run.factors.get(factor) for run in runs if metric.name in run.metrics}) > 1:
            page.notes.append(f"{what}: {title.lower()}: no runs differ in {factor} alone")
        return
    page.parts.append(html.heading(f"{title}: {what}", 3))
    caption = f"{words.title(words.label(metric))} by {factor}" + (f": {meaning}" if meaning != factor else "")
    name = f"{what} {factor}"
    if factor in ("noise", "classes") and all(series.number(line.label) is not None for line in levels):
        page.draw(name, lambda: figures.draw_levels(levels, what, meaning, log=factor == "classes"),
                  caption + "; one line per number of images")
    else:
        labels = {"True": "frozen", "False": "fine-tuned"} if factor == "frozen" else {}
        labelled = [dataclasses.replace(line, label=labels.get(line.label, line.label)) for line in levels]
        page.draw(name, lambda: figures.draw_sizes(labelled, [None] * len(labelled), what, legend=factor), caption)


def _table(runs: Sequence[Result], metric: Metric) -> Iterator[str]:
    rows = [["runs", "frozen", "images", "seeds", "min", "median", "max"]]
    for line in series.all_series(runs, metric):
        frozen = "; ".join(sorted({run.frozen_summary or "-" for run in line.runs}))
        for size, values in line.sizes().items():
            cells = (f"{f(values.tolist()):.4g}" for f in (min, statistics.median, max))
            rows.append([line.label or "all", frozen, f"{size:,.0f}", str(values.size), *cells])
    if len(rows) > 1:
        yield html.heading(f"Table: {words.label(metric)}", 3)
        yield html.table(rows)


def _pictures(tasks: dict[str, list[Result]], notes: list[str]) -> Iterator[str]:
    """Predictions of the runs with most images, as far as there are pictures of them."""
    shown = []
    for runs in tasks.values():
        paths = [(run, path) for run in sorted(runs, key=lambda run: -(run.images or 0))
                 if (path := _picture_of(run.folder, run.run)) is not None and path.is_file()]
        for run, path in paths[:PICTURES]:
            picture = jpeg(path)
            if picture is None:
                notes.append(f"run {run.run!r}: predictions.png cannot be read")
            else:
                images = f", {run.images:,.0f} images" if run.images else ""
                shown.append(html.picture(picture, "jpeg", f"predictions of {run.run}",
                                          f"{run.run}: {run.task}{images}"))
    if shown:
        yield html.heading("Predictions")
        yield from shown
    elif tasks:
        notes.append("no run has pictures of its predictions (predictions.png)")


def _picture_of(folder: Path, run: str) -> Path | None:
    """Path of a run's picture, unless the run's name leads out of the folder."""
    try:
        path = (folder / run / "predictions.png").resolve()
        return path if path.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _provenance(folders: Sequence[Path], results: Results) -> Iterator[str]:
    """Versions, data and machines, and every run."""
    yield html.heading("Where the numbers come from")
    facts = []
    for name, title in (("versions", "versions"), ("data", "fingerprints of training data")):
        values = sorted({row[name] for row in results.rows if row.get(name)})
        if values:
            more = f" and {len(values) - 6} more" if values[6:] else ""
            facts.append(f"{title}: " + "; ".join(values[:6]) + more)
    for folder in folders:
        facts += _machines(folder)
    facts.append(f"figures and tables: bvl report {' '.join(f.name or '.' for f in folders)}, from results.csv alone")
    yield html.points(facts)
    columns = [name for name in results.rows[0] if any(row[name] for row in results.rows) and name != "versions"]
    cells = [columns, *([_short(row[name]) for name in columns] for row in results.rows)]
    yield html.folded(f"all {len(results.rows)} rows of results.csv", html.table(cells))


def _machines(folder: Path) -> list[str]:
    """Machines, commits and hours of a study's runs, from timings.csv."""
    name = folder.resolve().name
    try:
        rows = read_rows(folder / "timings.csv")
    except UserError:
        return [f"{name}: no timings.csv: machine, commit and time are unknown"]
    facts = []
    for column, title in (("devices", "devices"), ("cpu_cores", "cores"), ("git_commit", "commit")):
        values = sorted({row[column] for row in rows if row.get(column)})
        if values:
            facts.append(f"{title} {', '.join(values[:4])}")
    with contextlib.suppress(ValueError):
        hours = sum(float(row["wall_seconds"]) for row in rows if row.get("wall_seconds")) / 3600
        facts += [f"{hours:.2f} hours of training and evaluation in all"] if hours else []
    return [f"{name}: {'; '.join(facts)}"] if facts else []


def _short(cell: str) -> str:
    try:
        value = float(cell)
    except ValueError:
        return cell
    return cell if not math.isfinite(value) or value.is_integer() else f"{value:.5g}"


def paper_table(folders: Sequence[Path], name: str, row: str | None = None, imports: Sequence[str] = ()) -> str:
    """A table of the paper beside the results in folders, as text.

    Args:
      row: row of the table for all results that their study puts into none.

    Raises:
      UserError: no such table or row; or as `series.read_results`.
    """
    if name not in tables.TABLES:
        raise UserError(f"--table {name!r}: no such table" + nearest(name, tables.TABLES))
    table = tables.TABLES[name]
    if row is not None and row not in table.rows:
        raise UserError(f"--row {row!r}: no such row in table {name}; valid: {', '.join(table.rows)}")
    rows = series.read_results(folders, imports).rows
    if row is not None:
        rows = [result if result.get("table") else {**result, "table": name, "row": row} for result in rows]
    return "\n".join((table.text(rows), *_notes_on_ours(rows, name)))


def _paper_tables(results: Results) -> Iterator[str]:
    """The paper's tables that some runs belong to, beside ours."""
    for name, table in tables.TABLES.items():
        if not any(row.get("table") == name for row in results.rows):
            continue
        yield html.heading(f"The paper's table beside ours: {table.title}")
        for note in (table.source, table.note, table.scale_warning(results.rows)):
            if note:
                yield html.paragraph(note, "soft")
        yield html.table([["row", "figure", "reported", "ours", "difference"], *table.cells(results.rows)])
        for note in _notes_on_ours(results.rows, name):
            yield html.paragraph(note, "soft")


def _notes_on_ours(rows: Sequence[dict[str, str]], table: str) -> list[str]:
    """What was frozen in our runs of a table, and what they are scored on."""
    ours = [row for row in rows if row.get("table") == table]
    frozen = sorted({row["frozen_summary"] for row in ours if row.get("frozen_summary")})
    metrics = {column.metric.lower() for column in tables.TABLES[table].columns if column.metric}
    splits = sorted({name.rpartition("/")[0] for row in ours for name, value in row.items()
                     if value and "/" in name and name.rpartition("/")[2].lower() in metrics})
    return ([f"Frozen in ours: {'; '.join(frozen)}."] if frozen else []) + (
        [f"Ours are scored on: {', '.join(splits)}."] if splits else [])
