"""The report of a study: report.html, which needs no other file, and its figures as PNG and SVG.

It is made of what results.csv holds, in this order: what was found, curves and laws of each task, what each factor
does, tables, pictures of predictions, and where the numbers come from. What is not there is said, never an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.scaling import extrapolation, figures, fitting, page, paper, series
from big_vision_lite.scaling.curves import read_rows
from big_vision_lite.scaling.figures import Fitted
from big_vision_lite.scaling.laws import laws as laws_for
from big_vision_lite.scaling.results import Trained, lineage
from big_vision_lite.scaling.series import Result, Results, Series

PICTURES = 4
"""Runs of each task whose predictions are shown: those with most images."""
_STUDIES = {
    "depth": ("Capacity", "a line a depth"),
    "noise": ("Noise", "share of labels that are wrong"),
    "classes": ("Vocabulary", "number of classes"),
    "frozen": ("Frozen against fine-tuned", "whether the pretrained layers stay as they are"),
    "init": ("Where training starts", "initialisation"),
}


@dataclasses.dataclass
class _Page:
    """What a report is made of so far."""

    folder: Path
    parts: list[str]
    notes: list[str]
    drawn: dict[str, str]

    def draw(self, name: str, make: Callable[[], Any], caption: str) -> None:
        """Draw a figure, keep it in figures/ and show it."""
        figure = make()
        stem = name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "figure"
        number = 2
        while name in self.drawn:
            name, number = f"{stem}-{number}", number + 1
        self.drawn[name] = caption
        for form in ("png", "svg"):
            figures.save(figure, self.folder / "figures" / f"{name}.{form}")
        svg = (self.folder / "figures" / f"{name}.svg").read_bytes()
        self.parts.append(page.picture(svg, "svg+xml", caption, caption))


def write(folders: Sequence[Path], out: Path | None = None, metric: str | None = None, draws: int = 200,
          imports: Sequence[str] = ()) -> list[str]:
    """Write the report of the results.csv, or the run, of each folder. Returns lines that say what was written and what
    is missing.

    Args:
      folders: of studies or runs.
      out: folder to write to; by default the first.

    Raises:
      UserError: no results.csv and no run, no such metric, or a file that cannot be written.
    """
    results = series.read(folders, imports)
    folder = out or folders[0]
    if metric is not None and metric not in results.metrics:
        raise UserError(f"no metric {metric!r} in {folders[0] / 'results.csv'}" + nearest(metric, results.metrics))
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {str(folder / 'figures')!r}: {error.strerror or error}") from None
    made = _Page(folder, [], list(results.notes), {})
    tasks = results.tasks()
    if not tasks:
        made.notes.append("no run is finished: there is nothing to draw yet")
    for task, runs in tasks.items():
        chosen = {}
        for study, some in series.studies(runs).items():
            has = metric is not None and any(metric in run.metrics for run in some)
            chosen[study] = series.main_metric(some, results.metrics, metric if has else None)
        _task(made, task, runs, chosen, draws)
    made.parts += _paper(results, imports)
    made.parts += _pictures(tasks, made.notes)
    made.parts += _provenance(folders, results)
    studies = sorted({run.factors["study"] for run in results.runs if "study" in run.factors})
    title = ", ".join(studies) or folder.resolve().name
    head = [page.heading(title, 1), page.paragraph(_counts(results), "soft")]
    if made.notes:
        head += [page.heading("What is missing"), page.points(made.notes)]
    target = folder / "report.html"
    try:
        target.write_text(page.page(title, [*head, *made.parts]), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(target)!r}: {error.strerror or error}") from None
    return [*made.notes, f"{len(made.drawn)} figures as PNG and SVG: {folder / 'figures'}", f"report: {target}"]


def _counts(results: Results) -> str:
    runs = len({(row.get("study"), row["run"]) for row in results.rows})
    sizes = sorted({run.images for run in results.runs if run.images})
    said = f"{len(results.runs)} of {runs} runs are finished and have metrics"
    if sizes:
        said += f"; {extrapolation.number(sizes[0])} to {extrapolation.number(sizes[-1])} images"
    return said + ". A point is a run, a mark the mean of its seeds, a bar the 95 % interval of that mean."


def _task(made: _Page, task: str, runs: Sequence[Result], metrics: dict[str, str], draws: int) -> None:
    """All of one task. ``metrics`` are those to draw, by study."""
    made.parts.append(page.heading(task))
    _sizes(made, task, runs, metrics, draws)
    for study, some in series.studies(runs).items():
        for factor in (*_STUDIES, *_own_factors(some)):
            _factor(made, f"{task}, {study}" if len(metrics) > 1 else task, some, metrics[study], factor)
    for metric in dict.fromkeys(metrics.values()):
        made.parts += _table(runs, metric)


def _sizes(made: _Page, task: str, runs: Sequence[Result], metrics: dict[str, str], draws: int) -> None:
    """Metric against images with the law of each study's main series, and the table of laws."""
    several = len(set(metrics.values())) > 1
    shown = []
    for study, some in series.studies(runs).items():
        label = f"{study} ({metrics[study]})" if several else study if len(metrics) > 1 else metrics[study]
        shown.append(series.reference(some, metrics[study], label))
    shown = sorted(filter(None, shown), key=lambda one: -len(one.sizes()))
    enough = min(4, len(shown[0].sizes())) if shown else 0  # fewer make no curve beside those that have more
    shown = [one for one in shown if len(one.sizes()) >= max(enough, 2)]
    if not shown:
        made.notes.append(f"{task}: no runs tell two or more numbers of images, so there is no curve")
        return
    laws: list[Fitted | None] = []
    tables: list[str] = []
    for one in shown:
        law = None
        name = f"{task}, {one.label}" if len(shown) > 1 else task
        try:
            curve = one.curve()
            comparison = extrapolation.compare(curve, laws_for(one.chance))
            law = Fitted(comparison, fitting.bootstrap(comparison.fit, curve, draws))
        except UserError as error:
            made.notes.append(f"{name}: no law was fitted: {error}")
        else:
            tables += _law(name, one, law)
        laws.append(law)
    beyond = any(law is not None for law in laws)
    drawn = ", ".join(dict.fromkeys(one.metric for one in shown))
    caption = f"{drawn} against images" + (
        f", with the law that extrapolates best, up to {figures.BEYOND:g} times the largest size" if beyond else "")
    made.draw(f"{task} images", lambda: figures.draw_sizes(shown, laws, task), caption)
    made.parts += tables


def _law(name: str, one: Series, law: Fitted) -> Iterator[str]:
    comparison, fit = law.comparison, law.comparison.fit
    curve = comparison.curve
    cells = extrapolation.table(comparison, law.draws)
    chosen = 1 + [row.law for row in comparison.rows].index(comparison.chosen.law)
    best = min(errors.mean() for errors in (curve.error[curve.x == x] for x in set(curve.x)))
    reach = extrapolation.reach(fit, curve, law.draws, float(f"{0.9 * best:.3g}"))
    whole = series.to_error(one.metric, 0 * one.values, one.values)[0]
    kind = one.metric if series.lower_is_better(one.metric) else f"error ({whole:g} - {one.metric})"
    yield page.heading(f"Laws: {name}", 3)
    said = f"{str(reach)[0].upper()}{str(reach)[1:]}"
    yield page.paragraph(f"{said}. That is a tenth less {kind} than the best so far.", "answer")
    yield page.table(cells, chosen)
    yield page.paragraph("Numbers are root mean squares of the log error: of the fit to all sizes; and, inner, at the "
                         "sizes above half the largest when fitted to the others, which is what the choice goes by.",
                         "soft")


def _own_factors(runs: Sequence[Result]) -> list[str]:
    return sorted({name for run in runs for name in run.factors} - {*_STUDIES, "study", "table", "row", "scale"})


def _factor(made: _Page, what: str, runs: Sequence[Result], metric: str, factor: str) -> None:
    """What one factor does in a study, all others equal. Where it does not vary, nothing is shown."""
    levels = series.along(runs, metric, factor)
    title, meaning = _STUDIES.get(factor, (factor, factor))
    if not levels:
        if len({run.factors.get(factor) for run in runs if metric in run.metrics}) > 1:
            made.notes.append(f"{what}: {title.lower()}: no runs differ in {factor} alone")
        return
    made.parts.append(page.heading(f"{title}: {what}", 3))
    caption = f"{metric} by {factor}: {meaning}" if meaning != factor else f"{metric} by {factor}"
    name = f"{what} {factor}"
    if factor in ("noise", "classes"):
        made.draw(name, lambda: figures.draw_levels(levels, what, meaning, log=factor == "classes"),
                  caption + "; a line a number of images")
    else:
        named = {"True": "frozen", "False": "fine-tuned"} if factor == "frozen" else {}
        named = [dataclasses.replace(one, label=named.get(one.label, one.label)) for one in levels]
        made.draw(name, lambda: figures.draw_sizes(named, [None] * len(named), what, legend=factor), caption)


def _table(runs: Sequence[Result], metric: str) -> Iterator[str]:
    rows = [["runs", "held fixed", "images", "seeds", "min", "median", "max"]]
    for one in series.every(runs, metric):
        held = "; ".join(sorted({run.held or "-" for run in one.runs}))
        for size, values in one.sizes().items():
            cells = (f"{f(values.tolist()):.4g}" for f in (min, statistics.median, max))
            rows.append([one.label or "all", held, f"{size:,.0f}", str(values.size), *cells])
    if len(rows) > 1:
        yield page.heading(f"Table: {metric}", 3)
        yield page.table(rows)


def _pictures(tasks: dict[str, list[Result]], notes: list[str]) -> Iterator[str]:
    """Predictions of the runs with most images, where there are pictures of them."""
    shown = []
    for runs in tasks.values():
        found = [(run, path) for run in sorted(runs, key=lambda run: -(run.images or 0))
                 if (path := _inside(run.folder, run.run)) is not None and path.is_file()]
        for run, path in found[:PICTURES]:
            jpeg = _jpeg(path)
            if jpeg is None:
                notes.append(f"run {run.run!r}: predictions.png cannot be read")
            else:
                images = f", {run.images:,.0f} images" if run.images else ""
                shown.append(page.picture(jpeg, "jpeg", f"predictions of {run.run}", f"{run.run}: {run.task}{images}"))
    if shown:
        yield page.heading("Predictions")
        yield from shown
    elif tasks:
        notes.append("no run has pictures of its predictions (predictions.png)")


def _inside(folder: Path, run: str) -> Path | None:
    """The picture of a run, unless the run's name leads out of the folder."""
    try:
        path = (folder / run / "predictions.png").resolve()
        return path if path.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _jpeg(path: Path, side: int = 1600) -> bytes | None:
    """A picture made small enough for a page; None where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    image.thumbnail((side, side))
    held = io.BytesIO()
    image.save(held, "jpeg", quality=82)
    return held.getvalue()


def _provenance(folders: Sequence[Path], results: Results) -> Iterator[str]:
    """Versions, data and machines, and every run."""
    yield page.heading("Where the numbers come from")
    facts = []
    for name, title in (("versions", "versions"), ("data", "fingerprints of training data")):
        values = sorted({row[name] for row in results.rows if row.get(name)})
        if values:
            more = f" and {len(values) - 6} more" if values[6:] else ""
            facts.append(f"{title}: " + "; ".join(values[:6]) + more)
    for folder in folders:
        facts += _machines(folder)
    facts.append(f"figures and tables: bvl report {' '.join(f.name or '.' for f in folders)}, from results.csv alone")
    yield page.points(facts)
    columns = [name for name in results.rows[0] if any(row[name] for row in results.rows) and name != "versions"]
    cells = [columns, *([_short(row[name]) for name in columns] for row in results.rows)]
    yield page.folded(f"all {len(results.rows)} rows of results.csv", page.table(cells))


def _machines(folder: Path) -> list[str]:
    """What timings.csv says of a study's runs, where it is there."""
    name = folder.resolve().name
    try:
        rows = read_rows(folder / "timings.csv")
    except UserError:
        return [f"{name}: no timings.csv: machine, commit and time are not known"]
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


def paper_table(folders: Sequence[Path], name: str, imports: Sequence[str] = ()) -> str:
    """A table of the paper beside the results in folders, as text, and which runs of its task are in none of its rows.

    Raises:
      UserError: there is no such table; or as `series.read`.
    """
    if name not in paper.TABLES:
        raise UserError(f"--table {name!r}: no such table" + nearest(name, paper.TABLES))
    results = series.read(folders, imports)
    rows, notes = _placed(results, _lineages(results, imports), name)
    return "\n".join((paper.TABLES[name].text(rows), *_told_of(rows, name), *notes))


def _lineages(results: Results, imports: Sequence[str]) -> dict[int, tuple[Trained, ...]]:
    """By number of the row: the runs that led to each finished one whose folder is there, and which no study put into
    a table."""
    found = {}
    for number, (row, folder) in enumerate(zip(results.rows, results.folders, strict=True)):
        if row.get("status", "done") in ("", "done") and not row.get("table") and folder.name == row["run"]:
            with contextlib.suppress(UserError, OSError, ValueError):  # a csv may be all that is left of a study
                found[number] = lineage(folder, imports)
    return found


def _placed(results: Results, lineages: dict[int, tuple[Trained, ...]],
            table: str) -> tuple[list[dict[str, str]], list[str]]:
    """All rows, those that belong into a table by their config told so; and why others of its task do not."""
    rows, notes = list(results.rows), []
    for number, runs in lineages.items():
        row, why = paper.place(table, runs)
        if row is not None:
            rows[number] = {**rows[number], "table": table, "row": row}
        elif why:
            notes.append(f"{rows[number]['run']} is in no row: {why}")
    return rows, notes


def _paper(results: Results, imports: Sequence[str]) -> Iterator[str]:
    """The paper's tables that some runs belong to, beside ours."""
    lineages = _lineages(results, imports)
    for name, told in paper.TABLES.items():
        rows, _ = _placed(results, lineages, name)
        if not any(row.get("table") == name for row in rows):
            continue
        yield page.heading(f"The paper's table beside ours: {told.title}")
        for note in (told.source, told.note, told.small(rows)):
            if note:
                yield page.paragraph(note, "soft")
        yield page.table([["row", "figure", "reported", "ours", "difference"], *told.cells(rows)])
        for said in _told_of(rows, name):
            yield page.paragraph(said, "soft")


def _told_of(rows: Sequence[dict[str, str]], table: str) -> list[str]:
    """What our runs of a table kept as it was while they learnt, and what they are scored on."""
    ours = [row for row in rows if row.get("table") == table]
    held = sorted({row["held"] for row in ours if row.get("held")})
    metrics = {column.metric.lower() for column in paper.TABLES[table].columns if column.metric}
    scored = sorted({name.rpartition("/")[0] for row in ours for name, value in row.items()
                     if value and "/" in name and name.rpartition("/")[2].lower() in metrics})
    return ([f"Held fixed in ours: {'; '.join(held)}."] if held else []) + (
        [f"Ours are scored on: {', '.join(scored)}."] if scored else [])
