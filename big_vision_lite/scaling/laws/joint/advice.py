"""A joint law's answers in words: what a budget buys, and what more images, compute or better labels would add."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.answers import ERRORS, Terms
from big_vision_lite.scaling.laws.curves import format_count
from big_vision_lite.scaling.laws.joint import budget
from big_vision_lite.scaling.laws.joint.budget import REACH, Plan, Question
from big_vision_lite.scaling.laws.joint.forms import ACTS_ON
from big_vision_lite.scaling.laws.joint.posterior import describe
from big_vision_lite.scaling.laws.joint.surface import JointLaw
from big_vision_lite.scaling.laws.prediction import Range, interval

TIMES, LEAST_TIMES = 10.0, 1.5
"""How many times the images or the compute is asked about; less where the law does not reach so far."""


def law_in_words(law: JointLaw) -> list[str]:
    """What the fitted parameters say."""
    found = law.parameters
    lines = [f"{len(law.plausible)} of {len(law.fits)} forms fit; they count alike in what follows"]
    if "R*" in found:
        lines.append(f"R*: {describe(found['R*'])}: after R* repeats of the images, one more is worth 1/e of fresh "
                     "images (Muennighoff et al. 2023)")
    for name, value in found.items():
        if name.startswith("kappa"):
            what, _, place = name.removeprefix("kappa").partition(" on ")
            kind = f" ({what.strip()})" if what.strip() else ""
            lines.append(f"{name}: {describe(value)}: 20 % wrong labels{kind} act like {0.8**value.median:.2f} of "
                         f"the {place}")
    if len(law.noise_acts_on) > 1:
        lines.append(f"noise acts on {', or on '.join(ACTS_ON[place] for place in law.noise_acts_on)}: these runs "
                     "cannot tell them apart")
    elif law.noise_acts_on:
        lines.append(f"noise acts on {ACTS_ON[law.noise_acts_on[0]]}: forms in which it acts elsewhere are ruled out")
    return lines


def in_words(law: JointLaw, question: Question, terms: Terms = ERRORS) -> list[str]:
    """All answers, a line each.

    Raises:
      UserError: the question is beyond the reach of the law; see `budget.check_reach`.
    """
    options = budget.plans(law, question)
    best = options[0]
    lines = [f"best for {format_count(question.images)} images: {_run(best, question)}: {_value(best.error, terms)}"]
    for other in options[1:]:
        better = float(np.mean(best.logs < other.logs))
        lines.append(f"  instead {_run(other, question)}: {_value(other.error, terms)}; worse with probability "
                     f"{min(better, 0.99):.2f}")
    passes = float((law.cells.seen / law.cells.images).max())
    if best.seen / best.images > 1.001 * passes:
        lines.append(f"  no run without memorising had more than {passes:.3g} passes: beyond, the error may rise again")
    enough = budget.enough_images(law, best, question)
    if enough < 0.9 * best.images:
        lines.append(f"  {format_count(enough)} of these images are enough for an error at most "
                     f"{budget.ENOUGH - 1:.0%} higher")
    elif best.images < 0.999 * question.images:
        lines.append(f"  the budget pays for less than one pass: {format_count(best.images)} of the images are seen")
    images = min(TIMES, REACH * float(law.cells.images.max()) / question.images)
    compute = min(TIMES, budget.largest_budget(law.cells) / question.operations)
    both = min(images, compute)
    lines += [_more(what, factor, law, question, best, terms, **changes) for what, factor, changes in (
        ("images at the same compute", images, {"images": images * question.images}),
        ("compute with the same images", compute, {"operations": compute * question.operations}),
        ("images and compute", both, {"images": both * question.images, "operations": both * question.operations}))]
    lines += _labels(law, question, best, terms)
    if len(law.cells.networks) == 1:
        lines.append("one network was run, so none can be called best; runs of another depth at two numbers of images "
                     "and two of images seen would tell")
    return lines


def _more(what: str, factor: float, law: JointLaw, question: Question, best: Plan, terms: Terms, **changes) -> str:
    """What so many times the images or compute would buy: `TIMES`, or as far as the law reaches."""
    if factor < LEAST_TIMES:
        return f"more {what}: out of reach, as these runs end at {REACH:g} times less; extend them first"
    times = "ten times" if factor == TIMES else f"{factor:.3g} times (as far as the law reaches)"
    return _what_if(f"{times} the {what}", law, question, best, terms, **changes)


def _labels(law: JointLaw, question: Question, best: Plan, terms: Terms) -> list[str]:
    """What half the noise would buy; for clean labels, what the noise of the runs would cost."""
    if not law.cells.kinds:
        return ["half the noise: unknown, as no run has wrong labels; runs with noise 0.2 and 0.4 would tell"]
    if question.noise > 0:
        return [_what_if(f"half the noise, {question.noise / 2:.0%} wrong labels", law, question, best, terms,
                         noise=question.noise / 2)]
    most = float(law.cells.noise.max())
    lines = []
    for kind in law.cells.kinds:
        named = f" ({kind})" if kind else ""
        noisy = dataclasses.replace(question, noise=most, kind=kind)
        lines.append(_what_if(f"{most:.0%} wrong labels{named} instead of none", law, question, best, terms, noise=most,
                              kind=kind))
        lines.append(_what_if(f"half of that noise, {most / 2:.0%} wrong labels{named}, instead of {most:.0%}", law,
                              noisy, budget.plans(law, noisy)[0], terms, noise=most / 2))
    return lines


def _what_if(what: str, law: JointLaw, question: Question, before: Plan, terms: Terms, **changes) -> str:
    """What changes of a question would buy."""
    asked = dataclasses.replace(question, **changes)
    try:
        after = budget.plans(law, asked)[0]
    except UserError as error:
        return f"{what}: {error}"
    gain = terms.to_metric(np.exp(after.logs)) - terms.to_metric(np.exp(before.logs))
    low, high = interval(gain, 0.95)
    return (f"{what}: {_run(after, asked)}: {_value(after.error, terms)}; {float(np.median(gain)):+.3g}, 95 % interval "
            f"{low:+.3g} to {high:+.3g}")


def _run(plan: Plan, question: Question) -> str:
    passes, share = plan.seen / plan.images, plan.budget / question.operations
    less = f", with {share:.0%} of the compute, where its reach ends" if share < 0.99 else ""
    return (f"{plan.network}, {format_count(plan.images)} images, {format_count(plan.seen)} images seen "
            f"({passes:.3g} pass{'es' * (passes > 1.005)}{less})")


def _value(error: Range, terms: Terms) -> str:
    """Such as "accuracy 0.75, 50 % interval 0.74 to 0.76, 95 % interval 0.71 to 0.78"."""
    if math.isnan(error.median):
        return "no answer"
    return f"{terms.name} {terms.value(error.median)}" + "".join(
        f", {level} interval {terms.between(limits)}"
        for level, limits in zip(("50 %", "95 %"), error.intervals, strict=True))


def frontier_table(law: JointLaw, question: Question, terms: Terms = ERRORS, rate: float | None = None
                   ) -> list[list[str]]:
    """Cells of the table of the best run per budget, header first.

    Args:
      rate: operations per second, for a column of hours.
    """
    tried = law.cells.budget.max()
    rows = [["operations", *(["hours"] if rate else []), "network", "images", "images seen", "passes", terms.name,
             "95 % interval", ""]]
    for plan in budget.frontier(law, question):
        error = plan.error
        rows.append([f"{plan.budget:.2e}", *([f"{plan.budget / rate / 3600:.3g}"] if rate else []), plan.network,
                     format_count(plan.images), format_count(plan.seen), f"{plan.seen / plan.images:.3g}",
                     terms.value(error.median), terms.between(error.intervals[-1]),
                     "beyond the runs" if plan.budget > 1.001 * tried else ""])
    return rows


def reach_in_words(law: JointLaw) -> str:
    """How far questions may go."""
    cells = law.cells
    return (f"answers reach to {format_count(REACH * float(cells.images.max()))} images and "
            f"{format_count(REACH * float(cells.seen.max()))} images seen, {REACH:g} times the runs'")
