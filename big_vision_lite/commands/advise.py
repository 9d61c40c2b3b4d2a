"""The command ``bvl advise``: what a budget of images and compute buys, by a joint law of a grid of runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from big_vision_lite.commands.arguments import parse
from big_vision_lite.errors import UserError

if TYPE_CHECKING:  # these import SciPy, which --help does without
    from big_vision_lite.scaling.laws.joint.budget import Question
    from big_vision_lite.scaling.laws.joint.cells import Cells, Surface
    from big_vision_lite.scaling.laws.joint.surface import JointLaw


@dataclasses.dataclass(frozen=True)
class Advise:
    """Say which network and how many passes are best for a budget, and what more images or compute would buy.

    Takes results of runs that differ in images and in images seen, and optionally in network and noise. The budget is
    that of one training run; without one, it is the largest of the runs.
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|results.csv ...")]
    """Folders of studies, or their results.csv; several make one surface."""
    images: float | None = None
    """Images that there are; by default the most of the runs."""
    gpu_hours: float | None = None
    """Budget in hours of the GPU that the runs were timed on, or of one with --rate."""
    seconds: float | None = None
    """Budget in seconds of the machine that the runs were timed on, or of one with --rate."""
    operations: float | None = None
    """Budget in floating-point operations, forward and backward."""
    rate: float | None = None
    """Speed in FLOP/s; by default measured, from timings.csv beside results.csv."""
    noise: float = 0.0
    """Share of your labels that are wrong."""
    kind: str | None = None
    """Kind of noise, where the runs have several."""
    score: str | None = None
    """Column of results.csv, such as validation/mAP; by default the main metric of the runs."""
    lower_is_better: bool = False
    """Direction of --score where it is no run's main metric."""
    bootstrap: int = 64
    """Fits per form of the law, from which intervals follow."""
    figure: Path | None = None
    """File (.png or .svg) to draw the surface into."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """A joint law fitted to results, and what it is asked."""

    found: Surface
    fitted: Cells
    """Those of the surface that are not memorised."""
    law: JointLaw
    question: Question
    rate: float | None
    """Operations per second, where they are known."""
    budget: str
    """In words."""

    @property
    def answers(self) -> list[str]:
        """What the budget buys, and what more images, compute or better labels would add, a line each."""
        from big_vision_lite.scaling.laws.joint import advice

        return advice.in_words(self.law, self.question, self.found.metric.terms)

    @property
    def frontier(self) -> list[list[str]]:
        """Cells of the table of the best run per budget, header first."""
        from big_vision_lite.scaling.laws.joint import advice

        return advice.frontier_table(self.law, self.question, self.found.metric.terms, self.rate)


def ask(options: Advise) -> Advice:
    """Fit the law that answers.

    Raises:
      UserError: options that contradict each other or are out of range, results that no law fits, or a question beyond
        the reach of the runs.
    """
    _check(options)
    from big_vision_lite.commands.laws import check_bootstrap
    from big_vision_lite.scaling.laws.joint import budget, cells, surface

    check_bootstrap(options.bootstrap)
    found = cells.read_surface(options.sources, options.score, options.lower_is_better)
    fitted = found.cells.take(~found.cells.memorised())
    surface.check(fitted)
    operations, rate, said = _budget(options, found, fitted)
    question = _question(options, fitted, operations)
    budget.check_reach(fitted, question)
    return Advice(found, fitted, surface.fit(fitted, found.chance, options.bootstrap), question, rate, said)


def advise(arguments: list[str]) -> int:
    options = parse(Advise, arguments, "bvl advise")
    if not options.sources:
        raise UserError("bvl advise needs results: bvl advise runs/surface --images 50000 --gpu-hours 10")
    result = ask(options)
    from big_vision_lite.commands.laws import columns
    from big_vision_lite.scaling.laws.joint import advice, judging

    found, fitted, law = result.found, result.fitted, result.law
    for line in (*judging.extents(fitted, len(found.cells) - len(fitted)), *found.notes):
        print(line)
    judgement = None
    try:
        judgement = judging.judge(fitted, found.chance, options.bootstrap)
    except UserError as error:
        print(f"held out: {error}")
    else:
        print(judgement.in_words(found.metric.terms))
    for line in advice.law_in_words(law):
        print(f"  {line}")
    print(columns(judging.forms_table(law, judgement)))
    print(f"\n{result.budget}")
    for line in result.answers:
        print(f"  {line}")
    print(f"\nfrontier, with up to {result.question.images:,.0f} images:")
    print(columns(result.frontier))
    for line in _transfers(options):
        print(line)
    if options.figure is not None:
        from big_vision_lite.scaling.report import figures, surfaces

        figures.save(surfaces.draw_fan(found, law, judgement, ""), options.figure)
        print(f"figure: {options.figure}")
    print(f"\nfit, held out: RMS of the log error. {advice.reach_in_words(law)}. Intervals are of the mean of many\n"
          "runs with the recipe of these; docs/scaling_laws.md says how often they hold.")
    return 0


def _transfers(options: Advise) -> list[str]:
    """What pretraining is worth on a target task, where there are such runs."""
    from big_vision_lite.scaling.laws.joint import transfer

    lines = []
    for way in transfer.read_transfers(options.sources):
        try:
            law = transfer.fit(way, options.bootstrap)
        except UserError as error:
            lines += ["", str(error)]
        else:
            lines += ["", f"{way.name}:", *(f"  {line}" for line in transfer.in_words(law, way.metric.terms))]
    return lines


def _check(options: Advise) -> None:
    """Raises: UserError: options that contradict each other or are out of range."""
    budgets = {"--gpu-hours": options.gpu_hours, "--seconds": options.seconds, "--operations": options.operations}
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: expected one budget; leave the others out")
    for name, value in (*budgets.items(), ("--rate", options.rate), ("--images", options.images)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} {value:g}: expected a number above 0")
    if options.figure is not None and options.figure.suffix not in (".png", ".svg"):
        raise UserError(f"--figure {str(options.figure)!r}: expected a name that ends in .png or .svg")
    if not 0 <= options.noise < 1:
        raise UserError(f"--noise {options.noise:g}: expected the share of wrong labels, from 0 to below 1")


def _budget(options: Advise, found, fitted) -> tuple[float, float | None, str]:
    """Operations, operations per second where they are known, and the budget in words.

    Raises:
      UserError: the runs do not tell operations, or speed.
    """
    from big_vision_lite.scaling.laws.joint import budget

    rate, machine = options.rate, "as given"
    hours = options.gpu_hours is not None
    if not found.counted:
        if options.gpu_hours or options.seconds or options.operations:
            raise UserError(f"{options.sources[0]}: no column operations, so a budget cannot be turned into images "
                            "seen; add it (the FLOPs of each run's training), or ask without a budget")
        largest = float(fitted.budget.max())
        return largest, None, f"budget: that of the longest runs, {fitted.seen.max():,.0f} images seen"
    if rate is None:
        measured = [one for one in budget.rates(found.runs) if one.gpu or not hours]
        if measured:
            rate = measured[0].operations_per_second
            machine = f"as {measured[0].runs} runs were on {measured[0].machine}, evaluations included"
    if options.operations is not None:
        return options.operations, rate, f"budget: {options.operations:.3g} operations"
    if not hours and options.seconds is None:
        largest = float(fitted.budget.max())
        return largest, rate, f"budget: that of the largest runs, {largest:.3g} operations"
    if rate is None:
        raise UserError(f"no timings.csv beside the results tells the speed of a {'GPU' if hours else 'machine'}; give "
                        "--rate in FLOP/s, or the budget as --operations")
    seconds = 3600 * options.gpu_hours if hours else options.seconds
    what = f"{options.gpu_hours:g} GPU hours" if hours else f"{options.seconds:g} seconds"
    return rate * seconds, rate, f"budget: {what} at {rate:.3g} FLOP/s ({machine}), {rate * seconds:.3g} operations"


def _question(options: Advise, fitted, operations: float):
    """Raises: UserError: a kind of noise that the runs do not have, or none where they have several."""
    from big_vision_lite.errors import nearest
    from big_vision_lite.scaling.laws.joint.budget import Question

    kinds = fitted.kinds
    kind = options.kind if options.kind is not None else kinds[0] if len(kinds) == 1 else ""
    if options.kind is not None and options.kind not in kinds:
        raise UserError(f"--kind {options.kind!r}: no run has such noise" + nearest(options.kind, kinds))
    if options.noise > 0 and len(kinds) > 1 and options.kind is None:
        raise UserError(f"--noise {options.noise:g}: the runs have noise of several kinds; give --kind, one of "
                        f"{', '.join(kinds)}")
    return Question(options.images or float(fitted.images.max()), operations, options.noise, kind)
