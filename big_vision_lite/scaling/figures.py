"""Figures of a study: curves over the number of images, and laws with their extrapolation.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart; markers and dashes say the same.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.heads.pictures import OKABE_ITO
from big_vision_lite.scaling import fitting
from big_vision_lite.scaling.extrapolation import Comparison
from big_vision_lite.scaling.series import Series, lower_is_better, to_error

COLOURS = (*OKABE_ITO, "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
BEYOND = 10.0
"""A law is drawn up to this many times the largest size."""
_STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
          "grid.color": "#e2e2e2", "grid.linewidth": 0.7, "axes.axisbelow": True, "svg.hashsalt": "big_vision_lite",
          "text.parse_math": False, "legend.frameon": False, "legend.fontsize": 9, "axes.titlesize": 11}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A law chosen for a series, and its bootstrap draws."""

    comparison: Comparison
    draws: np.ndarray


def _styled(draw: Any) -> Any:
    """A function that draws in our style, whatever matplotlib's settings are."""
    @functools.wraps(draw)
    def styled(*given: Any, **named: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
            return draw(*given, **named)

    return styled


@_styled
def draw_sizes(series: Sequence[Series], fitted: Sequence[Fitted | None], title: str, legend: str = "") -> Any:
    """Metric against images: every run a faint point, means with their 95 % interval, and where there is a law its
    curve up to `BEYOND` times the largest size with its band.

    Args:
      fitted: for each series its law, or None.
      legend: title of the legend; without one labels stand alone.
    """
    figure, axis = _axes(title)
    for i, (one, law) in enumerate(zip(series[:len(COLOURS)], fitted, strict=False)):
        label = one.label
        if law is not None:
            label += f": {law.comparison.chosen.law.name}"
            _draw_law(axis, law, i, lambda error, one=one: to_error(one.metric, error, one.values))
        _draw_runs(axis, one, one.images, i, label, line=law is None)
    axis.set_xscale("log")
    _say_counts(axis.xaxis)
    axis.set_xlabel("images")
    _finish(axis, series, legend)
    return figure


@_styled
def draw_levels(series: Sequence[Series], title: str, factor: str, log: bool = False) -> Any:
    """Metric against a factor, a line for each number of images. ``series`` are the levels, labelled by number."""
    figure, axis = _axes(title)
    sizes = sorted({size for one in series for size in one.sizes()})
    shown = sizes if len(sizes) <= len(COLOURS) else [sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, 5)]
    for i, size in enumerate(shown):
        runs = [(float(one.label), run) for one in series for run in one.runs if run.images == size]
        at = np.array([level for level, _ in runs])
        across = Series("", series[0].metric, tuple(run for _, run in runs))
        _draw_runs(axis, across, at, i, f"{size:,.0f}", line=True)
    if log:
        axis.set_xscale("log")
        _say_counts(axis.xaxis, at=sorted({float(one.label) for one in series}))
    axis.set_xlabel(factor)
    _finish(axis, series, "images")
    return figure


@_styled
def draw_laws(compared: Sequence[tuple[Comparison, np.ndarray]]) -> Any:
    """Errors of curves from a csv on logarithmic axes, held rows hollow, with laws and bands."""
    figure, axis = _axes("")
    for i, (comparison, draws) in enumerate(compared[:len(COLOURS)]):
        curve = comparison.curve
        _draw_law(axis, Fitted(comparison, draws), i, lambda error: error)
        name = f"{curve.name}: " if curve.name else ""
        for rows, face, said in ((~curve.held, COLOURS[i], "fitted"), (curve.held, "none", "held back")):
            if rows.any():
                axis.plot(curve.x[rows], curve.error[rows], MARKERS[i], color=COLOURS[i], mfc=face, ms=4,
                          label=f"{name}{said}" + (f", {comparison.chosen.law.name}" if face != "none" else ""))
    axis.set_xscale("log")
    axis.set_yscale("log")
    _say_counts(axis.xaxis)
    _say_counts(axis.yaxis, minor=True)
    axis.set_xlabel("x")
    axis.set_ylabel("error")
    axis.legend()
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as its name's ending says. Raises: UserError when the file cannot be written."""
    try:
        path.write_bytes(to_bytes(figure, path.suffix[1:]))
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


@_styled
def to_bytes(figure: Any, form: str) -> bytes:
    """A figure as png or svg; the same bytes each time."""
    held = io.BytesIO()
    figure.savefig(held, format=form, dpi=160, metadata={"Date": None} if form == "svg" else {"Software": None})
    return held.getvalue()


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(6.8, 4.3), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, loc="left")
    return figure, axis


def _say_counts(axis: Any, at: Sequence[float] = (), minor: bool = False) -> None:
    """Labels of a logarithmic axis as 10k and 1M, at the powers of ten or at values."""
    from matplotlib import ticker

    said = ticker.FuncFormatter(lambda value, _: _short(value))
    axis.set_major_formatter(said)
    if at:
        axis.set_major_locator(ticker.FixedLocator(at))
        axis.set_minor_locator(ticker.NullLocator())
    if minor:  # a curve may lie between two powers of ten
        axis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5)))
        axis.set_minor_formatter(said)


def _short(value: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _finish(axis: Any, series: Sequence[Series], legend: str) -> None:
    metrics = dict.fromkeys(one.metric for one in series)
    metric = series[0].metric if len(metrics) == 1 else ", ".join(metrics)
    axis.set_ylabel(metric + (" (lower is better)" if lower_is_better(metric) else ""))
    values = np.concatenate([one.values for one in series])
    if not lower_is_better(metric) and values.min() >= 0:
        axis.set_ylim(bottom=0)
    if sum(len(one.label) for one in series) > 80:  # too much to leave the curves free
        axis.legend(title=legend or None, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    else:
        axis.legend(title=legend or None)
    if len(series) > len(COLOURS) and axis.get_xlabel() == "images":
        axis.annotate(f"{len(series) - len(COLOURS)} more are not shown", (1, 1), xycoords="axes fraction", ha="right",
                      va="bottom", fontsize=8)


def _draw_law(axis: Any, fitted: Fitted, i: int, to_metric: Any) -> None:
    curve, law = fitted.comparison.curve.train, fitted.comparison.fit
    x = np.geomspace(curve.x.min(), BEYOND * curve.x.max(), 120)
    error = law.predict(x)[0]
    spread = law.predict(x, fitted.draws)
    ends = [fitting.interval(column, curve.x.size, len(law.law.parameters)) for column in spread.T]
    low, high = (np.array(end) for end in zip(*ends, strict=True))
    kept = error > 0  # a straight line ends at 0
    inside = kept & (x <= curve.x.max() * 1.0001)
    axis.fill_between(x[kept], to_metric(np.maximum(low, 0))[kept], to_metric(high)[kept], color=COLOURS[i], alpha=0.15,
                      linewidth=0)
    axis.plot(x[inside], to_metric(error)[inside], color=COLOURS[i], lw=1.6)
    axis.plot(x[kept & ~inside], to_metric(error)[kept & ~inside], color=COLOURS[i], lw=1.6, ls=(0, (4, 2)))


def _draw_runs(axis: Any, one: Series, x: np.ndarray, i: int, label: str, line: bool) -> None:
    axis.plot(x, one.values, MARKERS[i], color=COLOURS[i], ms=4, alpha=0.35, mew=0)
    at = np.unique(x)
    mean = np.array([one.values[x == a].mean() for a in at])
    half = _half_width(x, one.values, at)
    axis.errorbar(at, mean, yerr=half if half.any() else None, color=COLOURS[i], marker=MARKERS[i], ms=6, mfc="white",
                  mew=1.5, lw=1.4, ls=DASHES[i] if line else "none", elinewidth=1.2, capsize=3, label=label)


def _half_width(x: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Half of the 95 % interval of the mean at each of ``at``, by Student's t with the variance pooled over them: two
    or three seeds say too little of a variance alone. 0 where no value is repeated."""
    from scipy import stats

    counts = np.array([(x == a).sum() for a in at])
    freedom = int((counts - 1).sum())
    if freedom < 1:
        return np.zeros(at.size)
    square = sum(((values[x == a] - values[x == a].mean())**2).sum() for a in at)
    return stats.t.ppf(0.975, freedom) * np.sqrt(square / freedom / counts)
