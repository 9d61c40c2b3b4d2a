"""Figures of a study: curves over the number of images, and predictions beyond the largest.

Colours are those of Okabe and Ito (2008), distinguishable by colour-blind readers; markers and dashes repeat them.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.scaling.laws.answers import Terms
from big_vision_lite.scaling.laws.prediction import Prediction
from big_vision_lite.scaling.report import words
from big_vision_lite.scaling.report.series import Series
from big_vision_lite.scaling.studies.results import write_file
from big_vision_lite.system.palette import OKABE_ITO

COLOURS = (*OKABE_ITO, "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
BEYOND = 10.0
"""Predictions are drawn up to this many times the largest size."""
BANDS = "lines: median; bands: 50 % and 95 % intervals"
HEIGHT = 4.3
"""Of a figure in inches, to which a legend below the axes adds."""
MAX_LABEL = 90
"""Characters of a label in a legend."""
_STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
          "grid.color": "#e2e2e2", "grid.linewidth": 0.7, "axes.axisbelow": True, "svg.hashsalt": "big_vision_lite",
          "text.parse_math": False, "legend.frameon": False, "legend.fontsize": 9, "axes.titlesize": 11}


def styled(draw: Any) -> Any:
    """Draw in our style, whatever matplotlib's settings are."""
    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
            return draw(*args, **kwargs)

    return styled


@styled
def draw_sizes(lines: Sequence[Series], predictions: Sequence[Prediction | None], title: str, legend: str = "") -> Any:
    """Metric against images: each run as a faint point, means with 95 % intervals, and predictions with their bands.

    Args:
      predictions: of each of the lines, or None.
      legend: title of the legend.
    """
    figure, axis = create_axes(title)
    for i, (line, prediction) in enumerate(zip(lines[:len(COLOURS)], predictions, strict=False)):
        if prediction is not None:
            _draw_prediction(axis, prediction, i, line.metric.to_error)
        _draw_runs(axis, line, line.images, i, line.label, connected=prediction is None)
    _draw_chance(axis, lines)
    axis.set_xscale("log")
    format_counts(axis.xaxis)
    axis.set_xlabel("images")
    _finish(axis, lines, legend)
    return figure


@styled
def draw_levels(lines: Sequence[Series], title: str, factor: str, log: bool = False) -> Any:
    """Metric against a numeric factor, one line per number of images. ``lines``: a series per level."""
    figure, axis = create_axes(title)
    sizes = sorted({size for line in lines for size in line.sizes()})
    shown = sizes if len(sizes) <= len(COLOURS) else [sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, 5)]
    for i, size in enumerate(shown):
        runs = [(float(line.label), run) for line in lines for run in line.runs if run.images == size]
        levels = np.array([level for level, _ in runs])
        across = Series("", lines[0].metric, tuple(run for _, run in runs))
        _draw_runs(axis, across, levels, i, f"{size:,.0f}", connected=True)
    if log:
        axis.set_xscale("log")
        format_counts(axis.xaxis, at=sorted({float(line.label) for line in lines}))
    axis.set_xlabel(factor)
    _finish(axis, lines, "images")
    return figure


@styled
def draw_predictions(predictions: Sequence[tuple[Prediction, Terms]]) -> Any:
    """Curves with what is predicted beyond them, held-out points hollow. Errors are on a logarithmic axis, as they span
    decades; metrics whose higher values are better are not."""
    figure, axis = create_axes("")
    for i, (prediction, terms) in enumerate(predictions[:len(COLOURS)]):
        curve = prediction.curve
        _draw_prediction(axis, prediction, i, terms.to_metric)
        values = terms.to_metric(curve.error)
        for points, face, label in ((~curve.held_out, COLOURS[i], _label(curve.name or "runs")),
                                    (curve.held_out, "none", None)):
            axis.plot(curve.x[points], values[points], MARKERS[i], color=COLOURS[i], mfc=face, ms=4, label=label)
    all_terms = [terms for _, terms in predictions]
    axis.set_xscale("log")
    format_counts(axis.xaxis)
    if not any(terms.higher_is_better for terms in all_terms):
        axis.set_yscale("log")
        format_counts(axis.yaxis, minor=True)
    axis.set_xlabel(", ".join(dict.fromkeys(terms.unit for terms in all_terms)))
    axis.set_ylabel(", ".join(dict.fromkeys(terms.name for terms in all_terms)))
    held_out = "\nhollow: held out" if any(prediction.curve.held_out.any() for prediction, _ in predictions) else ""
    _add_legend(axis, BANDS + held_out, sum(len(prediction.curve.name) for prediction, _ in predictions))
    _say_hidden(axis, len(predictions))
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format of the path's suffix. Raises: UserError when the file cannot be written."""
    write_file(path, to_bytes(figure, path.suffix[1:]))


@styled
def to_bytes(figure: Any, form: str) -> bytes:
    """A figure as png or svg; the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=160, metadata={"Date": None} if form == "svg" else {"Software": None})
    return buffer.getvalue()


def create_axes(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(6.8, HEIGHT), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, loc="left")
    return figure, axis


def format_counts(axis: Any, at: Sequence[float] = (), minor: bool = False) -> None:
    """Label a logarithmic axis with 10k and 1M, at powers of ten or at given values."""
    from matplotlib import ticker

    formatter = ticker.FuncFormatter(lambda value, _: short_count(value))
    axis.set_major_formatter(formatter)
    if at:
        axis.set_major_locator(ticker.FixedLocator(at))
        axis.set_minor_locator(ticker.NullLocator())
    axis.set_minor_formatter(ticker.NullFormatter())  # matplotlib's own labels are of another kind
    axis.axes.autoscale_view()
    low, high = np.log10(axis.get_view_interval())
    if not at and (minor or np.floor(high) - np.ceil(low) < 1):  # a curve may lie between two powers of ten
        axis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5)))
        axis.set_minor_formatter(formatter)


def short_count(value: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _finish(axis: Any, lines: Sequence[Series], legend: str) -> None:
    metrics = dict.fromkeys(line.metric for line in lines)
    axis.set_ylabel(", ".join(words.label(metric) for metric in metrics))
    values = np.concatenate([line.values for line in lines])
    if all(metric.higher_is_better for metric in metrics) and values.min() >= 0:
        axis.set_ylim(bottom=0)
    _add_legend(axis, legend, sum(len(line.label) for line in lines))
    if axis.get_xlabel() == "images":
        _say_hidden(axis, len(lines))


def _add_legend(axis: Any, title: str, characters: int) -> None:
    if characters > 80:  # too long to leave the curves visible
        legend = axis.legend(title=title or None, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        axis.figure.set_figheight(HEIGHT + 0.2 * len(legend.get_texts()))
    else:
        axis.legend(title=title or None)


def _say_hidden(axis: Any, lines: int) -> None:
    if lines > len(COLOURS):
        axis.annotate(f"{lines - len(COLOURS)} more are not shown", (1, 1), xycoords="axes fraction", ha="right",
                      va="bottom", fontsize=8)


def _label(text: str) -> str:
    return text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}..."


def _draw_prediction(axis: Any, prediction: Prediction, i: int, to_metric: Callable[[np.ndarray], np.ndarray]) -> None:
    """The median, dashed beyond the largest size, and the bands of its intervals. Where no law has an answer, nothing.
    """
    x = np.append(np.geomspace(prediction.curve.train.x.min(), prediction.largest, 60),
                  np.geomspace(prediction.largest, BEYOND * prediction.largest, 40)[1:])
    ranges = prediction.errors(x)
    for level, opacity in ((1, 0.13), (0, 0.22)):  # the 95 % interval, and on it that of 50 %
        low, high = np.array([one.intervals[level] for one in ranges]).T
        axis.fill_between(x, to_metric(low), to_metric(high), color=COLOURS[i], alpha=opacity, linewidth=0)
    median = to_metric(np.array([one.median for one in ranges]))
    axis.plot(x[:60], median[:60], color=COLOURS[i], lw=1.6)
    axis.plot(x[59:], median[59:], color=COLOURS[i], lw=1.6, ls=(0, (4, 2)))


def _draw_runs(axis: Any, line: Series, x: np.ndarray, i: int, label: str, connected: bool) -> None:
    axis.plot(x, line.values, MARKERS[i], color=COLOURS[i], ms=4, alpha=0.35, mew=0)
    at = np.unique(x)
    mean = np.array([line.values[x == a].mean() for a in at])
    half = _half_width(x, line.values, at)
    axis.errorbar(at, mean, yerr=half if half.any() else None, color=COLOURS[i], marker=MARKERS[i], ms=6, mfc="white",
                  mew=1.5, lw=1.4, ls=DASHES[i] if connected else "none", elinewidth=1.2, capsize=3,
                label=_label(label))


def _draw_chance(axis: Any, lines: Sequence[Series]) -> None:
    """A dotted line at the value of guessing, where it is known and all lines have the same metric."""
    known = {line.metric.to_error(np.array([line.chance]))[0] for line in lines if line.chance is not None}
    if known and len({line.metric for line in lines}) == 1:
        axis.axhline(float(np.mean(list(known))), color="#777777", linestyle=":", linewidth=1, label="chance")


def _half_width(x: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Half of the 95 % interval of the mean at each of ``at``, by Student's t with the variance pooled over them: of
    two or three seeds alone a variance is too uncertain. 0 if no value is repeated."""
    from scipy import stats

    counts = np.array([(x == a).sum() for a in at])
    freedom = int((counts - 1).sum())
    if freedom < 1:
        return np.zeros(at.size)
    square = sum(((values[x == a] - values[x == a].mean())**2).sum() for a in at)
    return stats.t.ppf(0.975, freedom) * np.sqrt(square / freedom / counts)
