"""The section of a report about a joint law, for studies whose runs differ in images and in images seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.joint import advice, cells, judging, surface, transfer
from big_vision_lite.scaling.laws.joint.budget import Question
from big_vision_lite.scaling.laws.joint.cells import Surface
from big_vision_lite.scaling.laws.joint.judging import Judgement
from big_vision_lite.scaling.laws.joint.surface import JointLaw
from big_vision_lite.scaling.report import html, surfaces, words

Draw = Callable[[str, Callable[[], Any], str], None]
"""Draws a figure: its name, what makes it, and its caption."""


def varies(rows: Sequence[dict[str, str]]) -> bool:
    """Whether finished pretrainings differ in images, and those of one size in images seen."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        if cells.is_pretraining(row) and row.get("status", "done") in ("", "done"):
            seen.setdefault(row.get("images", ""), set()).add(row.get("images_seen", ""))
    return len(seen) > 1 and max(map(len, seen.values())) > 1


def section(study: str, folder: Path, rows: Sequence[dict[str, str]], bootstrap: int, draw: Draw,
            notes: list[str]) -> Iterator[str]:
    """The parts of the page about a study: figures are drawn by ``draw``, in between. What cannot be said is noted.

    Args:
      rows: of the study's results.csv in ``folder``.
    """
    done = [(folder / "results.csv", row) for row in rows if row.get("status", "done") in ("", "done")]
    name = f"images and images seen, {study}" if study else "images and images seen"
    try:
        found = cells.surface_of([row for row in done if cells.is_pretraining(row[1])], str(folder / "results.csv"))
        memorised = found.cells.memorised()
        fitted = found.cells.take(~memorised)
        law = surface.fit(fitted, found.chance, bootstrap)
    except UserError as error:
        notes.append(f"{name}: no joint law: {error}")
        return
    judgement = None
    try:
        judgement = judging.judge(fitted, found.chance, bootstrap)
    except UserError as error:
        notes.append(f"{name}: {error}")
    terms = found.metric.terms
    question = Question(float(fitted.images.max()), float(fitted.budget.max()))
    yield html.heading(f"One law of {name}")
    answers = advice.in_words(law, question, terms)
    draw(f"{study} fan", lambda: surfaces.draw_fan(found, law, judgement, study), _fan_caption(found, law, judgement))
    yield html.points(answers, "answer")
    unit = "operations" if found.counted else "3 x images seen"
    label = words.title(words.label(found.metric))
    draw(f"{study} frontier", lambda: surfaces.draw_frontier(found, law, question, study, unit),
         f"{label} against compute, with up to {question.images:,.0f} images: the best run of each budget "
         "by the joint law, with intervals; points are means over seeds")
    yield html.points([*judging.extents(fitted, int(memorised.sum())), *found.notes,
                       *([judgement.in_words(terms)] if judgement is not None else []), *advice.law_in_words(law)])
    yield html.table(advice.frontier_table(law, question, terms))
    yield html.folded("forms of the law", html.table(judging.forms_table(law, judgement, len(law.fits))))
    if judgement is not None:
        yield html.folded("held-out cells", html.table(judgement.table(terms)))
    yield html.paragraph("Forms that fit count alike; none is chosen by how it predicts the held-out cells. Answers at "
                         "the largest images and compute of the runs; bvl advise answers at others. Intervals are of "
                         "the mean of many runs with this recipe.", "soft")
    yield from _transfers(done, bootstrap, notes)


def _fan_caption(found: Surface, law: JointLaw, judgement: Judgement | None) -> str:
    """First what was learned: whether more images or more passes would help more at the largest sizes."""
    own, terms = surfaces.drawn_cells(law.cells), found.metric.terms
    images, seen, operations = float(own.images.max()), float(own.seen.max()), float(own.operations[0])
    logs = law.sampled([images, 2 * images, images], [seen, seen, 2 * seen], operations, float(own.noise[0]),
                       own.kind[0])
    now, data, passes = terms.to_metric(np.exp(np.median(logs, axis=0)))
    learned = (f"At {images:,.0f} images and {seen / images:.3g} passes ({own.network[0]}), twice the images at equal "
               f"images seen would change {terms.name} by {data - now:+.3g}, twice the passes by {passes - now:+.3g}. ")
    held_out = " Curves are fitted to the filled points alone." if judgement is not None else ""
    label = words.title(words.label(found.metric))
    return (f"{learned}{label} over images, one curve per number of images seen, with 95 % intervals; "
            f"dashed: equal passes.{held_out}")


def _transfers(done: Sequence[tuple[Path, dict[str, str]]], bootstrap: int, notes: list[str]) -> Iterator[str]:
    """What pretraining is worth in target images, for each way of transfer."""
    try:
        ways = transfer.transfers_of(done, str(done[0][0]))
    except UserError as error:
        notes.append(f"transfer: {error}")
        return
    for way in ways:
        try:
            law = transfer.fit(way, bootstrap)
        except UserError as error:
            notes.append(str(error))
        else:
            yield html.heading(f"What pretraining is worth: {way.name}", 3)
            yield html.points(transfer.in_words(law, way.metric.terms), "answer")
