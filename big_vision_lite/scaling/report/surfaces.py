"""Figures of a joint law: the fan of equal images seen over images, and the frontier over compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_lite.scaling.laws.curves import format_count
from big_vision_lite.scaling.laws.joint.budget import Plan, Question, frontier
from big_vision_lite.scaling.laws.joint.cells import Cells, Surface
from big_vision_lite.scaling.laws.joint.judging import Judgement
from big_vision_lite.scaling.laws.joint.surface import JointLaw
from big_vision_lite.scaling.report import words
from big_vision_lite.scaling.report.figures import (
    BANDS,
    COLOURS,
    MARKERS,
    create_axes,
    format_counts,
    styled,
)

PASSES = (1.0, 10.0)
"""Diagonals of equal passes."""
CURVES = len(MARKERS)
"""At most so many values of images seen are drawn."""


@styled
def draw_fan(surface: Surface, law: JointLaw, judgement: Judgement | None, title: str) -> Any:
    """Score against images, one curve per number of images seen, for the network of most cells and the least noise.

    Where a judgement is given, curves and bands are of its law, which never saw the hollow points. Cells outside the
    law (memorised) are crosses. Thin lines join points of equal passes.
    """
    figure, axis = create_axes(title)
    terms, cells = surface.metric.terms, drawn_cells(surface.cells)
    drawn = law if judgement is None else judgement.law
    if not set(cells.operations) <= set(drawn.cells.operations):  # the network has no small cells
        drawn, judgement = law, None
    outside = cells.memorised()
    limits = cells.images.min() / 1.3, cells.images.max() * 2
    levels = np.unique(cells.seen)
    if levels.size > CURVES:
        levels = levels[np.linspace(0, levels.size - 1, CURVES).round().astype(int)]
    for i, seen in enumerate(levels.tolist()):
        sizes = np.geomspace(*limits, 60)
        low, middle, high = _quantiles(drawn, sizes, seen, cells)
        axis.fill_between(sizes, terms.to_metric(low), terms.to_metric(high), color=COLOURS[i], alpha=0.16, linewidth=0)
        axis.plot(sizes, terms.to_metric(middle), color=COLOURS[i], lw=1.6)
        here = cells.seen == seen
        held_out = np.zeros(len(cells), bool) if judgement is None else _in(cells, judgement.held_out)
        values = terms.to_metric(cells.error)
        for which, marker, face in ((here & ~held_out & ~outside, MARKERS[i], COLOURS[i]),
                                    (here & held_out & ~outside, MARKERS[i], "white"), (here & outside, "x", None)):
            axis.plot(cells.images[which], values[which], marker, color=COLOURS[i], mfc=face, mew=1.4, ms=6)
        axis.plot([], [], MARKERS[i] + "-", color=COLOURS[i], label=format_count(seen))
    for passes in PASSES:
        seen = np.geomspace(levels[0], levels[-1], 40)
        inside = (seen / passes >= limits[0]) & (seen / passes <= limits[1])
        if inside.sum() < 2:
            continue
        _, middle, _ = _quantiles(drawn, seen[inside] / passes, seen[inside], cells)
        axis.plot(seen[inside] / passes, terms.to_metric(middle), color="#666666", lw=0.9, ls=(0, (4, 2)))
        end = seen[inside][-1] / passes, terms.to_metric(middle)[-1]
        axis.annotate(f"{passes:g} pass" + "es" * (passes > 1), end,
                      fontsize=8, color="#444444", xytext=(4, -9), textcoords="offset points")
    axis.set_xscale("log")
    format_counts(axis.xaxis)
    axis.set_xlabel("images")
    axis.set_ylabel(words.label(surface.metric))
    note = "filled: fitted, hollow: held out" if judgement is not None else "all points fitted"
    axis.legend(title=f"images seen\n{note}" + ("\nx: memorised, outside" if outside.any() else ""),
                title_fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.set_figwidth(8.2)
    return figure


@styled
def draw_frontier(surface: Surface, law: JointLaw, question: Question, title: str, unit: str = "operations") -> Any:
    """Score against compute: cells as points by network, and the best run of each budget with its intervals, dashed
    beyond the runs."""
    figure, axis = create_axes(title)
    terms, cells = surface.metric.terms, surface.cells
    networks = list(cells.networks)
    for i, network in enumerate(networks[:len(COLOURS)]):
        which = (np.array(cells.network) == network) & (cells.noise == question.noise)
        axis.plot(cells.budget[which], terms.to_metric(cells.error[which]), MARKERS[i], color=COLOURS[i], ms=4,
                  alpha=0.6, label=network)
    best = frontier(law, question, points=31)
    budgets = np.array([plan.budget for plan in best])
    for level, opacity in ((1, 0.13), (0, 0.22)):
        low, high = np.array([plan.error.intervals[level] for plan in best]).T
        axis.fill_between(budgets, terms.to_metric(low), terms.to_metric(high), color="#666666", alpha=opacity,
                          linewidth=0)
    middle = terms.to_metric(np.array([plan.error.median for plan in best]))
    tried = budgets <= 1.001 * cells.budget.max()
    axis.plot(budgets[tried], middle[tried], color="#222222", lw=1.8, label="best of the budget")
    beyond = np.append(np.flatnonzero(tried)[-1:], np.flatnonzero(~tried))
    axis.plot(budgets[beyond], middle[beyond], color="#222222", lw=1.8, ls=(0, (4, 2)))
    for plan, value in _changes(best, middle):
        axis.annotate(plan.network, (plan.budget, value), fontsize=8, xytext=(0, 9), textcoords="offset points",
                      ha="right")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
    axis.set_xlabel(f"{unit} of one training run")
    axis.set_ylabel(words.label(surface.metric))
    axis.legend(title=BANDS.replace("lines", "line"), title_fontsize=8)
    return figure


def _changes(best: Sequence[Plan], values: np.ndarray) -> list[tuple[Plan, float]]:
    """The runs of the frontier at which another network becomes the best."""
    return [(plan, float(value)) for before, plan, value in zip(best, best[1:], values[1:], strict=False)
            if plan.network != before.network]


def _quantiles(law: JointLaw, images, seen, cells: Cells) -> np.ndarray:
    """Errors at the ends of the 95 % interval and in its middle, ``[3, n]``, with the network and noise of some cells,
    which are all of one."""
    logs = law.sampled(images, seen, float(cells.operations[0]), float(cells.noise[0]), cells.kind[0])
    return np.exp(np.quantile(logs, (0.025, 0.5, 0.975), axis=0))


def drawn_cells(cells: Cells) -> Cells:
    """The cells with the least noise, usually none, of the network that most of them have."""
    least = int(cells.noise.argmin())
    alike = (cells.noise == cells.noise[least]) & (np.array(cells.kind) == cells.kind[least])
    values, counts = np.unique(cells.operations[alike], return_counts=True)
    return cells.take(alike & (cells.operations == values[counts.argmax()]))


def _in(cells: Cells, others: Cells) -> np.ndarray:
    """Which cells are among others."""
    keys = set(zip(others.images, others.seen, others.operations, others.noise, others.kind, strict=True))
    return np.array([key in keys for key in zip(cells.images, cells.seen, cells.operations, cells.noise, cells.kind,
                                                strict=True)])
