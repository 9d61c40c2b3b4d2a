"""How good predictions are on curves whose larger sizes are known: accuracy, coverage and width of intervals, time.

    python benchmarks/laws.py FILE.csv [--json OUT]    # per law, and all laws together
    python benchmarks/laws.py FILE.csv --choose        # noise.DEPARTURE and prediction.SHARES, by leaving networks out
    python benchmarks/laws.py --synthetic 200          # coverage where the truth is known

The file is one of `bvl laws` with a column ``split``. The curves of Alabdulmohsin et al. (2022) have names such as
"BiT/101/3 inet_10": the network and the data set with its shots, from which chance is known; other files may have a
column ``chance``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from big_vision_lite.scaling.laws import curves, fitting, noise, prediction
from big_vision_lite.scaling.laws.broken import Broken
from big_vision_lite.scaling.laws.curves import Curve
from big_vision_lite.scaling.laws.families import Asymptote, Power, Sigmoid, laws

CHANCE = {"bird": 0.995, "c": 0.99, "cal": 0.990, "inet": 0.999}
"""Error of guessing per data set of the benchmark: birds, CIFAR-100, Caltech-101, ImageNet."""
LEVELS = (0.5, 0.8, 0.95)
DEPARTURES = (0.03, 0.05, 0.1)
HALVES = (0.3, 0.35, 0.4, 0.45, 0.5)
"""Candidates for `prediction.SHARES` of 50 %."""


def network(name: str) -> str:
    return name.split(" ")[0]


def chances(path: Path) -> dict[str, float | None]:
    """Chance-level error by name of curve."""
    known: dict[str, float | None] = {}
    for row in curves.read_rows(path):
        name = row.get("curve", "")
        match = re.search(r" (bird|c|cal|inet)_\d+$", name)
        known[name] = float(row["chance"]) if row.get("chance") else CHANCE[match[1]] if match else None
    return known


def held_rows(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    return curve.x[curve.held_out], curve.error[curve.held_out]


def last(curve: Curve) -> tuple[float, float]:
    """Geometric mean size and mean error of the last tenth of the held rows, of three rows at least."""
    x, error = held_rows(curve)
    rows = min(max(3, math.ceil(x.size / 10)), x.size)
    return float(np.exp(np.log(x[-rows:]).mean())), float(error[-rows:].mean())


def judge(curve: Curve, chance: float | None) -> dict[str, float]:
    """A prediction of a curve's held rows, judged."""
    start = time.perf_counter()
    predicted = prediction.predict(curve, chance)
    x, error = held_rows(curve)
    size, goal = last(curve)
    logs = predicted.sampled(np.append(x, size))
    reach = predicted.sizes(goal)
    seconds = time.perf_counter() - start
    median = np.median(logs[:, :-1], axis=0)
    depth = 2 * abs((logs[:, -1] < np.log(goal)).mean() - 0.5)  # share of samples nearer to the middle than the truth
    result = {"depth": float(depth), "rmse": float(np.sqrt(np.mean((median - np.log(error))**2))), "seconds": seconds}
    for level in LEVELS:
        low, high = prediction.interval(logs[:, -1], level)
        result[f"coverage{level:.0%}_last"] = low <= np.log(goal) <= high
        result[f"width{level:.0%}"] = math.exp(high - low)
    inside = [low <= y <= high for column, y in zip(logs.T, np.log(error), strict=False)
              for low, high in [prediction.interval(column, 0.95)]]
    low, high = prediction.interval(reach, 0.95)
    return result | {"coverage95%_rows": float(np.mean(inside)), "reach95%": low <= size <= high}


def per_law(curve: Curve, chance: float | None) -> dict[str, float]:
    """RMSE(log) over the held rows of one fit of each law, all points counting alike."""
    x, error = held_rows(curve)
    scores = {}
    for law in dict.fromkeys((*laws(), *laws(chance))):
        if len(law.parameters) <= curve.train.sizes:
            fitted = np.maximum(fitting.fit(law, curve).predict(x)[0], 1e-3 * curve.error.min())
            scores[law.name] = float(np.sqrt(np.mean((np.log(fitted) - np.log(error))**2)))
    return scores


def print_scores(of_law: list[dict[str, float]], combined: list[dict[str, float]]) -> None:
    columns = [*of_law[0], "all together"]
    values = np.array([[*(scores.get(name, np.nan) for name in columns[:-1]), judged["rmse"]]
                       for scores, judged in zip(of_law, combined, strict=True)])
    best = np.nanargmin(values, axis=1)
    print(f"{'':26}{'mean':>8}{'median':>8}{'best':>7}   RMSE of the log error over held rows, {len(values)} curves")
    for i, name in enumerate(columns):
        print(f"{name:26}{np.nanmean(values[:, i]):8.4f}{np.nanmedian(values[:, i]):8.4f}{(best == i).mean():7.0%}")


def print_coverage(names: list[str], judged: list[dict[str, float]]) -> None:
    print(f"\n{'':26}" + "".join(f"{level:>7.0%}" for level in LEVELS) + "  rows   size  width 95 %")
    groups = {"all": range(len(names))} | {
        key: [i for i, name in enumerate(names) if network(name) == key] for key in dict.fromkeys(map(network, names))}
    for key, members in groups.items():
        rows = [judged[i] for i in members]
        cells = [*(f"coverage{level:.0%}_last" for level in LEVELS), "coverage95%_rows", "reach95%"]
        print(f"{key:26}" + "".join(f"{np.mean([row[cell] for row in rows]):7.2f}" for cell in cells)
              + f"{np.median([row['width95%'] for row in rows]):8.3f}")
    print("share of curves whose intervals hold the mean of the last tenth of the held rows; of 95 % intervals that\n"
          "hold each held row; that hold the size of the last tenth; median of high / low of the error there")


def summary(judged: list[dict[str, float]]) -> dict[str, float]:
    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in judged]))

    errors = [row["rmse"] for row in judged]
    return {"curves": len(judged), "rmse_mean": float(np.mean(errors)), "rmse_median": float(np.median(errors)),
            "coverage50_last": mean("coverage50%_last"), "coverage80_last": mean("coverage80%_last"),
            "coverage95_last": mean("coverage95%_last"), "coverage95_rows": mean("coverage95%_rows"),
            "reach95": mean("reach95%"), "width95_median": float(np.median([row["width95%"] for row in judged])),
            "seconds": sum(row["seconds"] for row in judged)}


def choose(read: list[Curve], known: dict[str, float | None]) -> None:
    """For each network, what is best on the others, and what that gives there: the departure with the lowest RMSE, and
    the share of samples that holds half of the curves."""
    scores = {}
    for departure in DEPARTURES:
        noise.DEPARTURE = departure
        scores[departure] = [judge(curve, known[curve.name]) for curve in read]
    left_out = []
    for name in dict.fromkeys(network(curve.name) for curve in read):
        own = [network(curve.name) == name for curve in read]
        means = {departure: float(np.mean([row["rmse"] for row, mine in zip(rows, own, strict=True) if not mine]))
                 for departure, rows in scores.items()}
        best = min(means, key=means.__getitem__)
        depths = np.array([row["depth"] for row in scores[best]])
        share = min(HALVES, key=lambda share: abs((depths[~np.array(own)] <= share).mean() - 0.5))
        print(f"without {name}: departure {best} (" + ", ".join(f"{d}: {mean:.4f}" for d, mean in means.items())
              + f"), half of the curves within {share:.0%} of the samples")
        left_out += [(curve.name, row | {"coverage50%_last": row["depth"] <= share})
                     for curve, row, mine in zip(read, scores[best], own, strict=True) if mine]
    names, judged = map(list, zip(*left_out, strict=True))
    print_coverage(names, judged)
    print(json.dumps(summary(judged), indent=1))


TRUTHS = ("M1", "M2", "M4", "broken")
NOISES = ("independent", "correlated", "smoothed")
DESIGNS = ("5 x 3", "30", "300")
CELLS = [(truth, kind, design) for truth in TRUTHS for kind in NOISES for design in DESIGNS]
NOISE = 0.02


def synthetic(rng: np.random.Generator, truth: str, kind: str, design: str
              ) -> tuple[Curve, Callable[[np.ndarray], np.ndarray], float | None]:
    """A curve with noise of 2 % over one to three decades, its true errors by size, and chance."""
    span = np.log(rng.choice((16.0, 100.0, 1000.0)))
    z = np.repeat(np.linspace(0, span, 5), 3) if design == "5 x 3" else np.linspace(0, span, int(design))
    law, theta = true_law(rng, truth, span)
    seeds = np.tile(np.arange(3), 5) if design == "5 x 3" else np.zeros(z.size, int)
    log_error = np.log(law.predict(theta, z)[0][0])
    for seed in np.unique(seeds):
        own = seeds == seed
        log_error[own] = noisy(rng, log_error[own], kind)
    chance = 0.99 if truth == "M4" else None
    error = np.minimum(np.exp(log_error), 0.999)
    curve = curves.from_points(1e5 * np.exp(z), error, seeds)
    return curve, lambda x: law.predict(theta, np.log(x / 1e5))[0][0], chance


def true_law(rng: np.random.Generator, truth: str, span: float):
    """A law with errors of 0.1 to 0.5 at the largest size, and below 0.98 at the smallest."""
    while True:
        end, c, share = rng.uniform(0.1, 0.5), rng.uniform(0.15, 0.5), rng.uniform(0, 0.7)
        if truth == "M1":
            law, theta = Power(), [np.log(end) + c * span, c]
        elif truth == "M2":
            law, theta = Asymptote(), [np.log((1 - share) * end) + 1.5 * c * span, 1.5 * c, share * end]
        elif truth == "M4":
            alpha = rng.uniform(0.5, 2)
            law, theta = Sigmoid(), [np.log((1 - share) * end / (0.99 - end)**alpha) + 2 * c * span, 2 * c, share * end,
                                     alpha, 0.99]
        else:
            law, theta = Broken(1), [0.0, rng.uniform(0, 0.2), share * end, rng.uniform(0.2, 0.5),
                                     rng.uniform(0.1, 0.6) * span, rng.uniform(-1.2, 0.4)]
            theta[0] = np.log((1 - share) * end / (law.predict(np.array([theta]), np.array([span]))[0][0, 0]
                                                   - share * end))
        if law.predict(np.array([theta]), np.zeros(1))[0][0, 0] < 0.98:
            return law, np.array([theta])


def noisy(rng: np.random.Generator, log_error: np.ndarray, kind: str) -> np.ndarray:
    """Independent noise; or neighbours that correlate by 0.8; or centred means of up to five points, never rising."""
    n = log_error.size
    steps = rng.standard_normal(n)
    if kind == "correlated":
        for i in range(1, n):
            steps[i] = 0.8 * steps[i - 1] + 0.6 * steps[i]
    log_error = log_error + NOISE * steps
    if kind != "smoothed":
        return log_error
    if n > 5:
        reach = [min(i, n - 1 - i, 2) for i in range(n)]
        log_error = np.array([log_error[i - r:i + r + 1].mean() for i, r in enumerate(reach)])
    return np.minimum.accumulate(log_error)


def cover(cell: tuple[str, str, str], number: int) -> list[float]:
    """How often 95 % intervals hold the truth at 2 and 10 times the largest size, and their median width."""
    rng = np.random.default_rng((7, CELLS.index(cell)))
    hits, widths = [], []
    for _ in range(number):
        curve, true, chance = synthetic(rng, *cell)
        x = curve.x.max() * np.array((2.0, 10.0))
        logs = prediction.predict(curve, chance).sampled(x)
        ends = np.exp([prediction.interval(column, 0.95) for column in logs.T])
        hits.append((ends[:, 0] <= true(x)) & (true(x) <= ends[:, 1]))
        widths.append(ends[:, 1] / ends[:, 0])
    return [*np.mean(hits, axis=0), *np.median(widths, axis=0)]


def print_synthetic(number: int) -> None:
    print(f"{number} curves per cell, noise {NOISE:.0%}: share of 95 % intervals that hold the truth, and median width")
    print(f"{'truth':8}{'noise':13}{'sizes':7}{'at 2x':>7}{'at 10x':>8}{'width':>8}{'':>8}")
    with ProcessPoolExecutor() as pool:
        for cell, values in zip(CELLS, pool.map(cover, CELLS, [number] * len(CELLS)), strict=True):
            missed = "" if min(values[:2]) >= 0.87 else "   below 0.87"
            print(f"{cell[0]:8}{cell[1]:13}{cell[2]:7}{values[0]:7.3f}{values[1]:8.3f}{values[2]:8.2f}{values[3]:8.2f}"
                  + missed, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--json", type=Path, help="file for the figures of all laws together")
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--synthetic", type=int, default=0, metavar="CURVES")
    options = parser.parse_args()
    if options.synthetic:
        print_synthetic(options.synthetic)
    if options.file is None:
        return
    read, known = curves.read_curves(options.file), chances(options.file)
    if not all(curve.held_out.any() for curve in read):
        parser.error(f"{options.file}: a curve has no rows whose split is {curves.EXTRAPOLATE!r} to be judged by")
    if options.choose:
        choose(read, known)
        return
    judged = [judge(curve, known[curve.name]) for curve in read]
    print_scores([per_law(curve, known[curve.name]) for curve in read], judged)
    print_coverage([curve.name for curve in read], judged)
    result = summary(judged)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
