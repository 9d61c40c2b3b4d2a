"""Parts of a study's report that need no figure: its best run, probes, a recipe."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections.abc import Iterator, Sequence

from big_vision_lite.errors import UserError
from big_vision_lite.experiment import read_experiment
from big_vision_lite.scaling.report import html, words
from big_vision_lite.scaling.report.runs import changed_fields
from big_vision_lite.scaling.report.series import Metric, Result, Results


def best(task: str, runs: Sequence[Result], metric: Metric) -> Iterator[str]:
    """The best run of a study, in words."""
    scored = [run for run in runs if metric.name in run.metrics]
    if scored:
        best = (max if metric.higher_is_better else min)(scored, key=lambda run: run.metrics[metric.name])
        chance = best.metrics.get(f"{metric.name}_chance")
        yield (f"{task}: best {words.label(metric)} {best.metrics[metric.name]:.4g}"
               + (f" (by chance {chance:.2g})" if chance is not None else "") + f", of {len(scored)} runs: {best.run}"
               + (f", {best.images:,.0f} images" if best.images else "")
               + (f", {best.seen:,.0f} images seen" if best.seen else ""))


def probes(runs: Sequence[Result]) -> Iterator[str]:
    """Few-shot and other probes of frozen features, where runs have them: the median over runs of each size."""
    names = sorted({name for run in runs for name in run.metrics
                    if re.fullmatch(r"(few_shot|neighbours)_\d+|linear", name.rpartition("/")[2])},
                   key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    sizes = sorted({run.images for run in runs if run.images})
    if not names or not sizes:
        return
    rows = [["probe", *(f"{size:,.0f} images" for size in sizes)]]
    for name in names:
        values = [[run.metrics[name] for run in runs if run.images == size and name in run.metrics] for size in sizes]
        rows.append([words.metric(name), *(f"{statistics.median(of):.4g}" if of else "" for of in values)])
    yield html.heading("Probes of frozen features: median accuracy", 3)
    yield html.table(rows)


def recipe(results: Results, imports: Sequence[str]) -> Iterator[str]:
    """The fields of the first run that has a config here, for a look at the recipe."""
    for run in results.runs:
        path = run.folder / run.run / "config.json"
        if path.is_file():
            with contextlib.suppress(UserError):  # of another format, or with classes that are not allowed
                fields = changed_fields(read_experiment(path, imports))
                yield html.heading("Recipe")
                yield html.folded(f"fields of {run.run} that differ from their defaults",
                                  html.table([["field", "value"], *map(list, fields)]))
                return
