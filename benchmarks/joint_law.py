"""How well the joint law predicts surfaces whose truth is known: python benchmarks/joint_law.py --surfaces 20

Each surface is drawn from one form of the law, on the grid below, with 3 seeds and noise of 1 to 2 %. The law is fitted
to the cells up to a quarter of the largest images and images seen, and predicts the others; and, fitted to all cells,
predicts the truth at ten times the largest images, images seen, and both.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np

from big_vision_lite.scaling.laws.joint import judging, surface
from big_vision_lite.scaling.laws.joint.cells import Cells, Run, cells_of
from big_vision_lite.scaling.laws.joint.forms import FORMULAS, SHARPNESS, Form
from big_vision_lite.scaling.laws.joint.surface import Reference

IMAGES = (1_400, 3_333, 7_937, 18_900, 45_000)
SEEN = (14_000, 28_000, 56_000, 112_000, 225_000, 450_000)
MOST_PASSES = 20
CHANCE = 0.99
CLEAN = ((0.0, ""),)


def truth(repeats: str, rng: np.random.Generator, envelope: str = "Rosenfeld", noise: str | None = None,
          kinds: tuple[str, ...] = ("",), capacity: str | None = None) -> tuple[Form, np.ndarray]:
    """A form and parameters, drawn from ranges in which scores lie between 0.3 and 0.8 on most of the grid."""
    form = Form(repeats, envelope, noise, capacity, CHANCE, 0.3, kinds)
    log = np.log
    theta = ([log(rng.uniform(0.5, 0.9)), log(rng.uniform(0.2, 0.5)), log(rng.uniform(3, 30))] if repeats == "repeated"
             else [log(rng.uniform(0.2, 0.5)), log(rng.uniform(0.25, 0.6)), log(rng.uniform(0.2, 0.5)),
                   log(rng.uniform(0.25, 0.6))])
    theta += [log(rng.uniform(1.5, 5))] if repeats == "mixed" else []
    theta += {"limit": [log(0.1), log(0.4)], "efficiency": [0.2], None: []}[capacity]
    theta += [rng.uniform(0.7, 1.8) for _ in kinds] if noise else []
    return form, np.array([*theta, rng.uniform(0, 0.2)])


def true_errors(form: Form, theta: np.ndarray, images, seen, operations=1e8, noise=0.0, kind: str = "") -> np.ndarray:
    """Errors of a surface without scatter."""
    reference = Reference(np.log(1e4), np.log(1e8), form.kinds)
    images, seen, operations, noise = np.broadcast_arrays(*map(np.atleast_1d, (images, seen, operations, noise)))
    at = reference.at(images, seen, operations, noise, [kind] * images.size)
    return np.exp(form.predict(theta[None], at)[0][0])


def runs(form: Form, theta: np.ndarray, rng: np.random.Generator, sigma: float | None = None,
         images: Sequence[float] = IMAGES, seen: Sequence[float] = SEEN, operations: Sequence[float] = (1e8,),
         noise: Sequence[tuple[float, str]] = CLEAN, seeds: int = 3) -> list[Run]:
    """Runs on a grid, each with its own scatter of the log error."""
    sigma = rng.uniform(0.01, 0.02) if sigma is None else sigma
    found = []
    for d, s, n, (p, kind) in itertools.product(images, seen, operations, noise):
        if s / d <= MOST_PASSES:
            error = float(true_errors(form, theta, d, s, n, p, kind)[0])
            found += [Run(f"{d},{s},{n},{p}{kind},{seed}", d, s, n, p, kind, f"network {n:g}", str(seed),
                          error * float(np.exp(sigma * rng.standard_normal()))) for seed in range(seeds)]
    return found


def cells(*args, **options) -> Cells:
    """Cells of `runs`."""
    return cells_of(runs(*args, **options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfaces", type=int, default=20, help="per form")
    count = parser.parse_args().surfaces
    print("| true form | fitted cells | held out | mean relative error | largest | 95 % intervals hold | width "
          "| ten times images / seen / both: hold | relative error |\n|" + "---|" * 9)
    far = (10 * IMAGES[-1], IMAGES[-1], 10 * IMAGES[-1]), (SEEN[-1], 10 * SEEN[-1], 10 * SEEN[-1])
    for repeats, envelope in itertools.product(FORMULAS, SHARPNESS):
        judgements, holds, gaps = [], [], []
        for seed in range(count):
            rng = np.random.default_rng(seed)
            form, theta = truth(repeats, rng, envelope)
            observed = cells(form, theta, rng)
            judgements.append(judging.judge(observed, CHANCE))
            answers = surface.fit(observed, CHANCE).errors(*far, 1e8)
            expected = true_errors(form, theta, *far)
            holds.append([low <= error <= high for error, (low, high) in zip(
                expected, (answer.intervals[-1] for answer in answers), strict=True)])
            gaps.append([abs(answer.median / error - 1) for error, answer in zip(expected, answers, strict=True)])
        relative = [judgement.relative for judgement in judgements]
        held = np.concatenate([judgement.holds for judgement in judgements])
        width = np.median(np.concatenate([j.intervals[:, 1] / j.intervals[:, 0] for j in judgements]))
        print(f"| {repeats}, {envelope} | {len(judgements[0].law.cells)} | {len(judgements[0].held_out)} | "
              f"{np.mean(relative):.3f} | {np.max(relative):.3f} | {held.mean():.3f} | {width:.2f} | "
              + " / ".join(f"{value:.2f}" for value in np.mean(holds, axis=0)) + " | "
              + " / ".join(f"{value:.3f}" for value in np.mean(gaps, axis=0)) + " |", flush=True)


if __name__ == "__main__":
    main()
