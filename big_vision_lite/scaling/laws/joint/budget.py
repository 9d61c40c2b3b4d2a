"""What a budget buys by a joint law: the best network and passes, the frontier, and how far the law reaches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.curves import format_count, read_rows
from big_vision_lite.scaling.laws.joint.cells import BACKWARD, Cells, Run
from big_vision_lite.scaling.laws.joint.posterior import to_range
from big_vision_lite.scaling.laws.joint.surface import JointLaw
from big_vision_lite.scaling.laws.prediction import Range

REACH = 10.0
"""Images, images seen and operations up to this many times the largest of the runs are answered."""
ENOUGH = 1.01
"""Fewer images are enough if the error grows at most by this factor."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What a user has: images, operations for one training run, and labels of which a share is wrong."""

    images: float
    operations: float
    noise: float = 0.0
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training run that spends a budget."""

    network: str
    operations: float
    """Of one forward pass per image."""
    images: float
    """Different images that it sees."""
    seen: float
    logs: Float[np.ndarray, " m"]
    """The log error of each sample of the law."""

    @property
    def error(self) -> Range:
        return to_range(np.exp(self.logs))

    @property
    def budget(self) -> float:
        return BACKWARD * self.operations * self.seen


@dataclasses.dataclass(frozen=True)
class Rate:
    """Speed of a machine, measured over runs from their first step to their end, evaluations included."""

    machine: str
    gpu: bool
    operations_per_second: float
    runs: int


def plans(law: JointLaw, question: Question) -> list[Plan]:
    """Runs that a budget pays for, one per network within reach, best first by the median error. A network whose reach
    ends before the budget spends less; at least one spends all.

    Raises:
      UserError: beyond the reach of the law; names the runs that would extend it.
    """
    check_reach(law.cells, question)
    found = []
    for network, operations in law.cells.networks.items():
        seen = min(question.operations / (BACKWARD * operations), REACH * float(law.cells.seen.max()))
        if not _reached(law.cells.seen, seen):
            continue
        images = min(question.images, seen)
        logs = law.sampled(images, seen, operations, question.noise, question.kind)[:, 0]
        found.append(Plan(network, operations, images, seen, logs))
    return sorted(found, key=lambda plan: float(np.median(plan.logs)))


def enough_images(law: JointLaw, plan: Plan, question: Question) -> float:
    """The fewest images with which a plan's error grows at most by `ENOUGH`."""
    sizes = np.geomspace(max(plan.images / 100, law.cells.images.min()), plan.images, 60) if (
        plan.images > law.cells.images.min()) else np.array([plan.images])
    logs = law.sampled(sizes, plan.seen, plan.operations, question.noise, question.kind)
    fits = np.median(logs - plan.logs[:, None], axis=0) <= np.log(ENOUGH)
    return float(sizes[fits.argmax()]) if fits.any() else plan.images


def frontier(law: JointLaw, question: Question, points: int = 9) -> list[Plan]:
    """The best run of each budget from the smallest of the cells to `REACH` times the largest, as many per decade
    apart as fit ``points``; fewer where the best run of several budgets is the same."""
    budgets = np.geomspace(law.cells.budget.min(), 0.999 * REACH * law.cells.budget.max(), points)
    best = []
    for operations in budgets:
        one = dataclasses.replace(question, operations=float(operations))
        if (options := plans(law, one)) and not (best and options[0].budget <= 1.001 * best[-1].budget):
            best.append(options[0])
    return best


def check_reach(cells: Cells, question: Question) -> None:
    """Raises: UserError: images, budget or noise beyond the reach of the cells."""
    if not _reached(cells.images, question.images):
        raise UserError(f"{format_count(question.images)} images are out of reach: the runs have "
                        f"{_extent(cells.images)}, and the law is asked up to {REACH:g} times beyond; runs of "
                        f"{_next(cells.images, question.images)} images would extend it")
    seen = {network: question.operations / (BACKWARD * operations) for network, operations in cells.networks.items()}
    if not any(_reached(cells.seen, value) for value in seen.values()):
        nearest = min(seen.values(), key=lambda value: abs(np.log(value / np.median(cells.seen))))
        raise UserError(f"the budget is out of reach: it pays for {format_count(nearest)} images seen; the runs have "
                        f"{_extent(cells.seen)}, and the law is asked up to {REACH:g} times beyond; runs with "
                        f"{_next(cells.seen, nearest)} images seen, or of another network, would extend it")
    if not _reached(cells.budget, question.operations):
        raise UserError(f"a budget of {question.operations:.3g} operations is out of reach: the runs have "
                        f"{cells.budget.min():.3g} to {cells.budget.max():.3g}, and the law is asked up to {REACH:g} "
                        f"times beyond; runs of {_next(cells.budget, question.operations)} operations would extend it")
    if question.noise > 0 and not cells.kinds:
        raise UserError("no run has wrong labels, so their cost is unknown; runs with noise 0.2 and 0.4 at two numbers "
                        "of images and two of images seen would tell")
    if question.noise > cells.noise.max():
        raise UserError(f"{question.noise:.0%} wrong labels are out of reach: the runs have up to "
                        f"{cells.noise.max():.0%}; runs with noise {question.noise:g} would extend it")


def largest_budget(cells: Cells) -> float:
    """Operations of the largest run within reach."""
    largest = BACKWARD * max(cells.networks.values()) * REACH * float(cells.seen.max())
    return min(largest, REACH * float(cells.budget.max()))


def _reached(own: np.ndarray, value: float) -> bool:
    return bool(own.min() / REACH <= value * (1 + 1e-9) and value <= own.max() * REACH * (1 + 1e-9))


def _next(own: np.ndarray, value: float) -> str:
    """The size nearest to the runs from which a value is within reach."""
    return format_count(value / REACH if value > own.max() else value * REACH)


def _extent(own: np.ndarray) -> str:
    return f"{format_count(float(own.min()))} to {format_count(float(own.max()))}"


def rates(runs: Sequence[Run]) -> list[Rate]:
    """Speeds by the timings.csv beside each results.csv, most runs first; none where there is no such file."""
    totals: dict[tuple[str, bool], list[float]] = {}
    for path in dict.fromkeys(run.source for run in runs):
        timings = path.parent / "timings.csv"
        if not timings.is_file():
            continue
        by_name = {row.get("run"): row for row in read_rows(timings)}
        for run in runs:
            row = by_name.get(run.name) if run.source == path else None
            if row is None:
                continue
            try:
                seconds = float(row["wall_seconds"]) - float(row.get("seconds_to_first_step") or 0)
            except (KeyError, ValueError):
                continue
            cores = f", {row['cpu_cores']} cores" if row.get("cpu_cores") else ""
            machine = (row.get("devices") or row.get("platform") or "unknown machine") + cores
            if seconds > 0:
                total = totals.setdefault((machine, row.get("platform") in ("gpu", "cuda", "rocm")), [0.0, 0.0, 0])
                total[0] += float(row.get("operations") or BACKWARD * run.operations * run.seen)
                total[1] += seconds
                total[2] += 1
    found = [Rate(machine, gpu, operations / seconds, int(count))
             for (machine, gpu), (operations, seconds, count) in totals.items()]
    return sorted(found, key=lambda rate: -rate.runs)
