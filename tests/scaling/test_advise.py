"""bvl advise, the law of transfer, and the report's part on images and images seen: answers, refusals and figures."""

import csv
import re

import joint_law as benchmark
import numpy as np
import pytest
from PIL import Image

from big_vision_lite.commands.advise import advise as command
from big_vision_lite.commands.laws import laws as laws_command
from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.joint import advice, budget, cells, surface, transfer
from big_vision_lite.scaling.laws.joint.budget import Question
from big_vision_lite.scaling.laws.metric import Metric
from big_vision_lite.scaling.report import joint, report, series

SMALL, LARGE = 1e8, 2e8
RATE = 5e10
NOISE = ((0.2, "uniform"), (0.4, "uniform"))


def grid():
    """Runs of two networks with noise, and a cell that memorises."""
    rng = np.random.default_rng(0)
    form, theta = benchmark.truth("sum", rng, noise="seen", kinds=("uniform",), capacity="efficiency")
    found = benchmark.runs(form, theta, rng, operations=(SMALL,))
    few = {"images": benchmark.IMAGES[2::2], "seen": benchmark.SEEN[2::2]}
    found += benchmark.runs(form, theta, rng, operations=(SMALL,), noise=NOISE, **few)
    found += benchmark.runs(form, theta, rng, operations=(LARGE,), **few)
    worst = [run for run in found if run.images == 1400 and run.seen == 14_000]
    return found + [cells.Run(f"memorised {run.seed}", 1400, 28_000, SMALL, 0, "", run.network, run.seed,
                              1.2 * run.error) for run in worst if run.operations == SMALL]


def rows():
    return [{"run": run.name, "study": "surface", "status": "done", "stage": "pretraining", "head": "Classification",
             "init": "random", "images": run.images, "depth": 10 if run.operations == SMALL else 18, "seed": run.seed,
             "noise": run.noise, "noise_kind": run.kind, "classes": 100, "images_seen": run.seen,
             "operations": 3 * run.operations * run.seen, "main_metric": "validation/top1", "direction": "higher",
             "unit": "", "validation/top1": 1 - run.error} for run in grid() if run.name.startswith("memo") or not (
                 run.images == 1400 and run.seen == 28_000)]


def transfers():
    form = transfer.TransferForm("Rosenfeld", 0.9, 0.3)
    theta = np.array([[np.log(0.6), np.log(0.35), 0.3, 0.4, 0.3, 0.05]])
    rng = np.random.default_rng(1)
    found, scratch = [], {}
    for images in (0, 1400, 7937, 45_000):
        for target in (500, 2500, 12_500):
            at = transfer.AtTransfer(np.log([target / 3000]), np.log([max(images, 1) / 8000]), np.array([images == 0]))
            error = float(np.exp(form.predict(theta, at)[0][0, 0]))
            scratch.setdefault(target, error)
            if (images, target) == (1400, 12_500):
                error = 1.1 * scratch[target]  # pretraining on few images harms there
            worth = float(np.exp(form.transferred(theta, at)[0, 0]) * 3000)
            found += [(images, target, error * float(np.exp(0.01 * rng.standard_normal())), seed, worth)
                      for seed in range(3)]
    return found


def transfer_rows():
    return [{"run": f"t{images}-{target}-{seed}", "study": "surface", "status": "done", "head": "Classification",
             "stage": "transfer" if images else "pretraining", "init": "pretraining" if images else "random",
             "images": images or target, "target_images": target, "depth": 10, "seed": seed, "frozen": False,
             "classes": 10, "images_seen": 9000, "main_metric": "test/top1", "direction": "higher", "unit": "",
             "test/top1": 1 - error} for images, target, error, seed, _ in transfers()]


def write(path, found):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for one in found for name in one)), restval="")
        table.writeheader()
        table.writerows(found)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surface")
    write(folder / "results.csv", [*rows(), *transfer_rows()])
    write(folder / "timings.csv", [{"run": row["run"], "platform": "cpu", "devices": "2 x cpu", "cpu_cores": 2,
                                    "wall_seconds": 15 + row["operations"] / RATE, "seconds_to_first_step": 15}
                                   for row in rows()])
    return folder


def printed(capsys, *arguments):
    assert command([*map(str, arguments), "--bootstrap", "20"]) == 0
    return capsys.readouterr().out


def test_answers(study, capsys, tmp_path):
    figure = tmp_path / "fan.png"
    text = printed(capsys, study, "--images", 50_000, "--seconds", 3600, "--figure", figure)
    for part in (r"2 networks, up to 40% wrong labels", r"error rises again in 1 cells .*memorised",
                 r"held out, \d+ cells .*mean relative error \d", r"95 % intervals hold \d+ of \d+", "kappa uniform on",
                 r"3600 seconds at 5e\+10 FLOP/s \(as \d+ runs were on 2 x cpu, 2 cores, evaluations included\), 1.8e",
                 r"best for 50,000 images: depth 18, .*passes\): validation/top1 0\.\d", "instead depth 10, ",
                 r"9 times \(as far as the law reaches\) the images at the same compute", "the compute with the same",
                 r"40% wrong labels \(uniform\) instead of none: .*-0", r"half of that noise, 20% wrong labels .*\+0",
                 r"frontier, with up to 50,000 images", "hours", "fine-tuned", r"worth [\d,]+ more labelled images",
                 "worse than from scratch: worth nothing here"):
        assert re.search(part, text), part
    pixels = np.asarray(Image.open(figure).convert("RGB"))
    assert pixels.std() > 5 and pixels.shape[1] > 800


@pytest.mark.parametrize("arguments, message", [
    (("--images", "5e6"), "5 million images are out of reach: .*up to 10 times beyond; runs of 500,000 images would"),
    (("--operations", "1e20"), "the budget is out of reach: .* images seen, or of another network, would extend it"),
    (("--gpu-hours", "1"), "no timings.csv beside the results tells the speed of a GPU; give --rate"),
    (("--noise", "0.6"), "60% wrong labels are out of reach: the runs have up to 40%"),
    (("--seconds", "9", "--operations", "9"), "--seconds and --operations: expected one budget"),
    (("--kind", "parent"), "--kind 'parent': no run has such noise"),
    (("--noise", "1"), "expected the share of wrong labels"),
    (("--score", "test/top2"), "no such column"),
    (("--figure", "fan.gif"), "expected a name that ends in .png or .svg"),
])
def test_refusals(study, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        command([str(study), *arguments, "--bootstrap", "20"])
    assert "\n" not in str(error.value)


def test_without_operations_or_noise(tmp_path, capsys):
    found = [{name: value for name, value in row.items() if name != "operations"} for row in rows()
             if row["depth"] == 10 and not row["noise"]]
    write(tmp_path / "results.csv", found)
    text = printed(capsys, tmp_path / "results.csv")
    assert "budget: that of the longest runs, 450,000 images seen" in text and "hours" not in text
    assert "one network was run, so none can be called best" in text
    assert "half the noise: unknown, as no run has wrong labels" in text
    with pytest.raises(UserError, match="no column operations"):
        command([str(tmp_path), "--operations", "1e12"])
    with pytest.raises(UserError, match="no run has wrong labels"):
        command([str(tmp_path), "--noise", "0.2"])


def test_a_plan_spends_its_budget_on_the_better_network():
    rng = np.random.default_rng(0)
    form, theta = benchmark.truth("sum", rng, capacity="efficiency")
    law = surface.fit(benchmark.cells(form, theta, rng, operations=(SMALL, LARGE)), benchmark.CHANCE, 20)
    question = Question(45_000, 3 * LARGE * 100_000)
    best, other = budget.plans(law, question)
    truly = {plan.operations: float(benchmark.true_errors(form, theta, plan.images, plan.seen, plan.operations)[0])
             for plan in (best, other)}
    assert best.budget == other.budget == question.operations and best.seen != other.seen
    for plan in (best, other):
        low, high = plan.error.intervals[-1]
        assert low <= truly[plan.operations] <= high
    if abs(np.log(truly[SMALL] / truly[LARGE])) > 0.01:
        assert best.operations == min(truly, key=truly.get)
    points = budget.frontier(law, question)
    medians = [plan.error.median for plan in points]
    assert len(points) == 9 and medians == sorted(medians, reverse=True)
    assert [plan.budget for plan in points] == sorted({plan.budget for plan in points})
    beyond = Question(45_000, 1.2 * budget.REACH * 3 * SMALL * float(law.cells.seen.max()))
    small, = (plan for plan in budget.plans(law, beyond) if plan.operations == SMALL)
    assert small.seen == budget.REACH * law.cells.seen.max() and "83% of the compute" in advice._run(small, beyond)
    few = budget.plans(law, Question(45_000, 3 * SMALL * 20_000))[0]
    assert few.images == few.seen  # less than one pass


def test_what_pretraining_is_worth():
    found = transfers()
    harmed_only = [(float(images), float(target), error) for images, target, error, *_ in found]
    way = transfer._cells("fine-tuned", Metric("test/top1"), 0.9, harmed_only)
    assert [(i, t) for i, t in zip(way.images[way.harmed], way.target[way.harmed], strict=True)] == [(1400, 12_500)]
    law = transfer.fit(way, 64)
    held = []
    for images, target, _, seed, worth in found:
        if images and not seed and (images, target) != (1400, 12_500):
            low, high = law.worth(images, target)[0].intervals[-1]
            held.append(low <= worth <= high)
            assert high / low < 20
    assert len(held) == 8 and sum(held) >= 7
    expected = way.error[way.images == 0]
    predicted = [one.median for one in law.errors(0, way.target[way.images == 0])]
    np.testing.assert_allclose(predicted, expected, rtol=0.03)


def test_too_few_transfers_are_refused():
    runs = [(0.0, 500.0, 0.7), (1400.0, 500.0, 0.6), (2800.0, 500.0, 0.5)]
    with pytest.raises(UserError, match="1 different numbers of target images from scratch; expected at least 2"):
        transfer.fit(transfer._cells("frozen", Metric("test/top1"), 0.9, runs))


def test_the_report_has_the_fan_and_names_budgets(study, tmp_path):
    lines = report.write_report([study], tmp_path / "out", bootstrap=20)
    page = (tmp_path / "out" / "report.html").read_text()
    for part in ("One law of images and images seen, surface", "images seen would change validation/top1 by",
                 "best for 45,000 images", "held-out cells", "What pretraining is worth: depth 10, fine-tuned",
                 "images seen; predictions by all laws together"):
        assert part in page, part
    assert any("figures as PNG" in line for line in lines)
    for name in ("surface-fan", "surface-frontier"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 20_000


def test_curves_are_of_one_budget(study, capsys, tmp_path):
    results = series.read_results([study])
    runs = [run for run in results.tasks()["pretraining, Classification"] if "target_images" not in run.factors]
    lines = series.all_series([run for run in runs if run.factors["noise"] == "0.0"], Metric("validation/top1"))
    assert all(len({run.seen for run in line.runs}) == 1 for line in lines)
    assert series.main_series(runs, Metric("validation/top1"), "").budget.endswith(" images seen")
    fixed = [row for row in rows() if row["images_seen"] == 56_000 and row["depth"] == 10 and not row["noise"]]
    write(tmp_path / "results.csv", fixed)
    assert not joint.varies(fixed)
    assert laws_command([str(tmp_path), "--target", "0.95", "--bootstrap", "20"]) == 0
    text = capsys.readouterr().out
    assert "at 56,000 images seen" in text.splitlines()[0]
    passes = [row | {"images_seen": 10 * row["images"]} for row in fixed]
    write(tmp_path / "results.csv", passes)
    line, = [line for _, line in series.curves_of(tmp_path, None, False)]
    assert line.budget == "at 10 passes"
