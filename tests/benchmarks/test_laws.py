"""The benchmark of predictions: on the two committed curves, and where the truth is known."""

import json
import math
import re
import sys
from pathlib import Path

import laws as benchmark
import numpy as np
import pytest

from big_vision_lite.scaling.laws import noise

JFT = Path(__file__).parents[1] / "goldens" / "jft_curves"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The two committed curves in one file, named as those of the benchmark of Alabdulmohsin et al. are."""
    path = tmp_path_factory.mktemp("curves") / "two.csv"
    lines = ["curve,seen_examples,error,split"]
    for name in ("inet_10", "cal_10"):
        lines += [f"BiT/101/3 {name},{row}"
                  for row in (JFT / f"BiT-101-3_{name}.csv").read_text().splitlines()[1:]]
    path.write_text("\n".join(lines) + "\n")
    return path


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["laws.py", *map(str, arguments)])
    benchmark.main()


def test_what_is_measured_on_the_committed_curves(both, tmp_path, capsys, monkeypatch):
    assert benchmark.chances(both) == {"BiT/101/3 inet_10": 0.999, "BiT/101/3 cal_10": 0.99}
    main(monkeypatch, both, "--json", tmp_path / "out.json")
    result, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert set(result) == {"curves", "rmse_mean", "rmse_median", "coverage50_last", "coverage80_last",
                           "coverage95_last", "coverage95_rows", "reach95", "width95_median", "seconds"}
    assert result["curves"] == 2 and 0.005 < result["rmse_mean"] < 0.0265 and 0 < result["seconds"] < 20
    assert result["rmse_median"] == pytest.approx(result["rmse_mean"])  # of two
    assert result["coverage95_last"] == result["reach95"] == 1 and result["coverage95_rows"] > 0.9
    assert 1.05 < result["width95_median"] < 1.35
    for name in ("log-linear", "broken (2 breaks)", "sigmoid from chance (M4)", "all together", "BiT/101/3"):
        assert f"\n{name}  " in printed, name
    assert json.dumps(result, indent=1) in printed


def test_scores_of_one_curve(both):
    curve, _ = benchmark.curves.read_curves(both)
    size, goal = benchmark.last(curve)
    held = curve.x[curve.held_out]
    assert size == pytest.approx(math.prod(held[-3:])**(1 / 3)) and goal == curve.error[-3:].mean()
    scores, judged = benchmark.per_law(curve, 0.999), benchmark.judge(curve, 0.999)
    assert len(scores) == 8 and min(scores.values()) > 0.005 and scores["log-linear"] > 0.3
    assert judged["width50%"] < judged["width80%"] < judged["width95%"]
    assert judged["coverage50%_last"] <= judged["coverage80%_last"] <= judged["coverage95%_last"]


def test_the_departure_is_chosen_on_other_networks(both, tmp_path, capsys, monkeypatch):
    text = both.read_text().replace("BiT/101/3 cal_10", "ViT/16 cal_10")
    (tmp_path / "networks.csv").write_text(text)
    monkeypatch.setattr(noise, "DEPARTURE", noise.DEPARTURE)  # set back afterwards
    main(monkeypatch, tmp_path / "networks.csv", "--choose")
    printed = capsys.readouterr().out
    means = {}
    for name in ("BiT/101/3", "ViT/16"):
        line = next(line for line in printed.splitlines() if line.startswith(f"without {name}: "))
        chosen, scores, share = re.search(r"departure (\S+) \((.*)\), half of the curves within (\d+)%", line).groups()
        means[name] = dict(pair.split(": ") for pair in scores.split(", "))
        assert int(share) / 100 in benchmark.HALVES
        assert set(means[name]) == {str(departure) for departure in benchmark.DEPARTURES}
        assert float(means[name][chosen]) == min(map(float, means[name].values()))
    assert means["BiT/101/3"] != means["ViT/16"]


@pytest.mark.parametrize("cell", benchmark.CELLS[::4], ids=" ".join)
def test_synthetic_curves(cell):
    truth, kind, design = cell
    curve, true, chance = benchmark.synthetic(np.random.default_rng(1), *cell)
    assert curve.x.size == {"5 x 3": 15, "30": 30, "300": 300}[design] and (chance == 0.99) == (truth == "M4")
    assert 0.1 <= true(curve.x.max()[None])[0] <= 0.5 and true(curve.x.min()[None])[0] < 0.98
    off = np.log(curve.error) - np.log(true(curve.x))
    assert 0.003 < off.std() < 0.04 and abs(off.mean()) < 0.04
    if kind == "smoothed":
        for seed in np.unique(curve.seed):
            assert (np.diff(curve.error[curve.seed == seed]) <= 0).all()


def test_coverage_of_a_cell():
    values = benchmark.cover(("M1", "independent", "5 x 3"), 6)
    at_2x, at_10x, width_2x, width_10x = values
    assert at_2x >= 4 / 6 and at_10x >= 4 / 6 and 1 < width_2x < width_10x < 4
    assert values == benchmark.cover(("M1", "independent", "5 x 3"), 6)


def test_a_file_without_held_rows(tmp_path, capsys, monkeypatch):
    (tmp_path / "all.csv").write_text("x,error\n1,0.5\n2,0.4\n")
    with pytest.raises(SystemExit):
        main(monkeypatch, tmp_path / "all.csv")
    assert "a curve has no rows whose split is 'extrapolate'" in capsys.readouterr().err
