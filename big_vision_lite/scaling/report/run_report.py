"""The report of one run: report.html, which needs no other file. What was learned comes first, what is missing last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.evaluation.calibration import CalibrationDetails
from big_vision_lite.evaluation.details import Details
from big_vision_lite.scaling.report import figures, html, runs, words
from big_vision_lite.scaling.report.pictures import jpeg
from big_vision_lite.scaling.report.runs import Curve, RunFacts
from big_vision_lite.scaling.studies.results import write_file

SHOWN = 12
"""Classes shown at either end of a long list; all are below, folded."""
SMOOTHED = 60
"""Points from which a curve is drawn faint, with its running mean."""


def write_run_report(folder: Path, out: Path | None = None, imports: Sequence[str] = ()) -> list[str]:
    """Write the report of the run in a folder. Returns lines that say what was written and what is missing.

    Args:
      out: folder to write to; by default the run's.

    Raises:
      UserError: the folder holds no run, a file of it cannot be read, or the report cannot be written.
    """
    facts = runs.read_facts(folder, imports)
    missing = list(_missing(facts))
    parts = [html.heading(facts.name, 1), html.paragraph(_subtitle(facts), "soft"),
             html.points(list(_conclusions(facts)), "answer"), *_curves(facts)]
    for name, (step, details) in facts.details.items():
        parts += _details(name, step, details)
    parts += _predictions(facts)
    parts += [html.heading("Recipe"), html.paragraph("Fields that differ from their defaults; config.json has all.",
                                                     "soft"),
              html.table([["field", "value"], *map(list, runs.changed_fields(facts.experiment))])]
    parts += [html.heading("Data, time and machine"), html.table([["", ""], *_provenance(facts)])]
    if missing:
        parts += [html.heading("What is missing"), html.points(missing)]
    target = (out or folder) / "report.html"
    write_file(target, html.page(facts.name, parts))
    return [*missing, f"report: {target}"]


def _subtitle(facts: RunFacts) -> str:
    experiment = facts.experiment
    backbone = experiment.backbone
    depth = getattr(backbone, "depth", None)
    start = f", from {experiment.transfer.init}" if experiment.transfer.init else ", from random weights"
    return (f"{type(experiment.head).__name__} on {type(backbone).__name__}{f'-{depth}' if depth else ''}{start}; "
            f"{len(facts.classes):,} classes")


def _conclusions(facts: RunFacts) -> Iterator[str]:
    name = facts.main
    if name is not None:
        yield runs.headline(facts)
        steps, values = facts.curves[name]
        at, best = facts.best(name)
        if at != facts.step:
            yield f"Best of {len(steps)} evaluations: {best:.4g} at step {at:,}"
        if len(steps) > 2:
            before = max(0, int(np.searchsorted(steps, 0.5 * facts.step, "right")) - 1)
            yield f"From step {steps[before]:,} to the end it changed by {values[-1] - values[before]:+.3g}"
        loss = f"{name.rpartition('/')[0]}/loss"
        if loss in facts.curves and len(facts.curves[loss][1]) > 2:
            low = facts.curves[loss][1].argmin()
            rise = facts.curves[loss][1][-1] / facts.curves[loss][1][low] - 1
            if rise > 0.02:
                yield (f"The loss on {name.rpartition('/')[0]} was lowest at step {facts.curves[loss][0][low]:,} and "
                       f"has risen by {rise:.0%} since: the run overfits, or is overconfident")
    evaluated = [name for name in facts.experiment.evals if name in facts.details]
    for name in evaluated[:1]:
        details = facts.details[name][1]
        classes = details.get("classes", [])
        if len(classes) > 1:
            count = min(3, len(classes) // 2)
            yield (f"Weakest by {words.metric(details.get('metric', 'score'))}: {_named(classes[:count])}; strongest: "
                   f"{_named(classes[:-count - 1:-1])}")
        if confusions := details.get("confusions"):
            worst = confusions[0]
            yield (f"Most frequent confusion: {worst['share']:.0%} of {worst['true']} are taken for "
                   f"{worst['predicted']}")
    if "wall_seconds" in facts.run:
        speed, waited = (facts.curves.get(key) for key in ("images_per_second", "data_wait"))
        yield (f"{words.duration(facts.run['wall_seconds'])} in all on {facts.machine}"
               + (f"; {words.count(np.median(speed[1]))} images/s in training" if speed else "")
               + (f", {np.mean(waited[1]):.0%} of the time waiting for data" if waited else ""))


def _named(classes: Sequence[Any]) -> str:
    return ", ".join(f"{one['name']} {one['score']:.3g}" for one in classes)


def _curves(facts: RunFacts) -> Iterator[str]:
    yield html.heading("Curves")
    evals = list(facts.experiment.evals)
    losses = {"training": facts.curves.get("loss"), **{name: facts.curves.get(f"{name}/loss") for name in evals}}
    yield _figure("Loss against steps", "loss", losses)
    if facts.main is not None:
        main = facts.main.rpartition("/")[2]
        scores = {name: facts.curves.get(f"{name}/{main}") for name in evals}
        yield _figure(f"{words.title(words.metric(main))} against steps", words.metric(main), scores, facts.chance)
    probes = {words.metric(f"{name}/{key}").replace("_", " "): curve for name in facts.experiment.probes
              for full, curve in facts.curves.items() if full.startswith(f"{name}/")
              for key in [full.removeprefix(f"{name}/")] if "/" not in key}
    yield _figure("Probes of the features against steps", "accuracy", probes)
    yield _figure("Learning rate against steps", "learning rate", {"": facts.curves.get("learning_rate")})
    yield _figure("Speed against steps", "images per second", {"": facts.curves.get("images_per_second")})


def _figure(title: str, y_label: str, curves: dict[str, Curve | None], chance: float | None = None) -> str:
    """The curves that have two points or more; nothing if there is none."""
    shown = {name: curve for name, curve in curves.items() if curve is not None and len(curve[0]) > 1}
    if not shown:
        return ""
    return html.picture(figures.to_bytes(draw_curves(title, "steps", y_label, shown, chance), "svg"), "svg+xml", title)


@figures.styled
def draw_curves(title: str, x_label: str, y_label: str, curves: dict[str, Curve], chance: float | None = None,
                noisy: bool = True) -> Any:
    """Lines over steps or shares.

    Args:
      curves: by the label in the legend; "" for none.
      chance: value of guessing, as a dotted line.
      noisy: draw lines of many points faint, with their running mean.
    """
    figure, axis = figures.create_axes(title)
    for number, (label, (x, y)) in enumerate(curves.items()):
        colour = figures.COLOURS[number % len(figures.COLOURS)]
        style = {"color": colour, "linestyle": figures.DASHES[number % len(figures.DASHES)]}
        if noisy and len(x) >= SMOOTHED:
            width = max(3, len(x) // 20)
            axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            mean = np.convolve(y, np.ones(width) / width, "valid")
            axis.plot(x[width - 1:], mean, label=label or None, **style)
        else:
            axis.plot(x, y, marker=figures.MARKERS[number % len(figures.MARKERS)] if len(x) < 30 else None, ms=4,
                      label=label or None, **style)
    if chance is not None:
        axis.axhline(chance, color="#777777", linestyle=":", linewidth=1, label="chance")
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    if any(curves) or chance is not None:
        axis.legend()
    return figure


def _details(name: str, step: int, details: Details) -> Iterator[str]:
    """Classes, confusions and curve of an evaluation."""
    classes, metric = details.get("classes", []), words.metric(details.get("metric", "score"))
    if classes:
        yield html.heading(f"{words.title(metric)} per class on {name}, at step {step:,}")
        rows = [[one["name"], f"{one['score']:.3f}", f"{one['count']:,}"] for one in classes]
        header = ["class", metric, "in the truth"]
        if len(rows) <= 2 * SHOWN:
            yield html.table([header, *rows])
        else:
            yield html.paragraph(f"The {SHOWN} weakest and the {SHOWN} strongest of {len(rows):,} classes.", "soft")
            yield html.table([header, *rows[:SHOWN], ["…", "", ""], *rows[-SHOWN:]])
            yield html.folded(f"all {len(rows):,} classes", html.table([header, *rows]))
    if confusions := details.get("confusions"):
        yield html.heading(f"What is taken for what on {name}")
        yield html.table([["true class", "predicted as", "share of the true class", "count"],
                          *([one["true"], one["predicted"], f"{one['share']:.1%}", f"{one['count']:,}"]
                            for one in confusions)])
    if curve := details.get("curve"):
        title = f"{words.title(curve['y_label'])} against {curve['x_label'].partition(',')[0]} on {name}"
        x, y = np.array(curve["x"]), np.array(curve["y"])
        figure = draw_curves(title, curve["x_label"], curve["y_label"], {"": (x, y)}, noisy=False)
        yield html.picture(figures.to_bytes(figure, "svg"), "svg+xml", title)
    if calibration := details.get("calibration"):
        title = f"Calibration on {name}"
        yield html.heading(title)
        yield html.paragraph(f"Expected calibration error {calibration['ece']:.3f}: so far, on average, is the "
                             "probability of the best class from how often it is right.")
        figure = draw_reliability(title, calibration)
        yield html.picture(figures.to_bytes(figure, "svg"), "svg+xml", title)


@figures.styled
def draw_reliability(title: str, calibration: CalibrationDetails) -> Any:
    """Accuracy against confidence (a reliability diagram); dots are as large as their share of the images."""
    figure, axis = figures.create_axes(title)
    bins = calibration["bins"]
    x, y, images = (np.array([one[key] for one in bins]) for key in ("confidence", "accuracy", "images"))
    axis.plot([0, 1], [0, 1], color="#777777", linestyle=":", linewidth=1, label="calibrated")
    axis.plot(x, y, color=figures.COLOURS[0], linewidth=1)
    axis.scatter(x, y, 10 + 150 * images / images.sum(), color=figures.COLOURS[0], label="images by confidence")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("probability given to the best class")
    axis.set_ylabel("share of images where it is right")
    axis.legend()
    return figure


def _predictions(facts: RunFacts) -> Iterator[str]:
    if (picture := jpeg(facts.folder / "predictions.png")) is not None:
        yield html.heading("Predictions")
        yield html.picture(picture, "jpeg", f"predictions of {facts.name}", "Images spread evenly over the first "
                           "evaluation, not chosen")


def _provenance(facts: RunFacts) -> Iterator[list[str]]:
    experiment, run = facts.experiment, facts.run
    yield ["training data", f"{facts.images:,} images of {len(facts.classes):,} classes "
           f"({type(experiment.train.source).__name__}), {run.get('data', 'fingerprint unknown')}"]
    yield ["seen", f"{facts.images_seen:,} images" + (f", {run['bad_images']} unreadable" if run.get("bad_images")
                                                      else "")]
    for name, inputs in experiment.evals.items():
        yield [f"evaluation {name}", type(inputs.source).__name__]
    yield ["machine", f"{facts.machine}, {run.get('platform', '')}"]
    for key, label in (("seconds_to_first_step", "before the first step"), ("checkpoint_seconds", "saving"),
                       ("wall_seconds", "in all")):
        if key in run:
            yield [f"time {label}", words.duration(run[key])]
    yield ["started", run.get("time", "unknown")]
    yield ["seed", str(experiment.seed)]
    yield ["commit", run.get("git_commit") or "outside a checkout"]
    yield ["versions", ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())]


def _missing(facts: RunFacts) -> Iterator[str]:
    if not facts.run:
        yield "no checkpoint yet: the run has just begun"
    elif "results" not in facts.run:
        yield (f"the run is at step {facts.step:,} of {facts.experiment.steps:,}; the same command resumes it")
    if not facts.experiment.evals:
        yield "no evaluation: the config names none"
    for name in facts.experiment.evals:
        if name not in facts.details:
            yield (f"scores per class on {name}: bvl evaluate {facts.folder} writes them, as does the end of a run, if "
                   "the head has any")
    if jpeg(facts.folder / "predictions.png") is None:
        yield "no picture of predictions (predictions.png), or it cannot be read"
    yield "one run: its seed's scatter is unknown; bvl train CONFIG:seed=1 and bvl compare tell"
