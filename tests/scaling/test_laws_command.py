"""The command bvl laws: answers from csv files and from results, and what it refuses."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from big_vision_lite.commands.laws import laws as command
from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws import curves, prediction

JFT = Path(__file__).parents[1] / "goldens" / "jft_curves"
SIZES, SEEDS = (500, 1000, 2000, 4000, 8000), (0, 1, 2)


def error_at(images, seed=0):
    return round(0.2 + 0.6 * (images / 500)**-0.5 * (1 + 0.01 * seed * (-1)**images), 6)


def write_csv(path, rows, header="x,error,split"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def run(images, seed=0, value=None, depth=18, **more):
    value = 1 - error_at(images, seed) if value is None else value
    return {"run": f"d{depth}-n{images}-s{seed}", "study": "data", "status": "done", "stage": "pretraining",
            "head": "Classification", "init": "random", "images": images, "depth": depth, "seed": seed, "classes": 10,
            "main_metric": "test/top1", "direction": "higher", "unit": "", "test/top1": value,
            "test/loss": 4 * (1 - value), **more}


def write_results(folder, rows):
    folder.mkdir(exist_ok=True)
    with open(folder / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        table.writeheader()
        table.writerows(rows)
    return folder


STUDY = [run(n, s) for n in SIZES for s in SEEDS]
ERRORS = [f"{n},{1 - (1 - error_at(n, s))},{s}" for n in SIZES for s in SEEDS]


def printed(capsys, *arguments):
    assert command([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def numbers(text):
    """The values and intervals of the lines that begin with "at", and those of sizes."""
    values = [[float(n) for n in re.findall(r"(?:error|top1|to|interval) ([\d.]+)", line)]
              for line in re.findall(r"^  at .*", text, re.M)]
    return values, re.findall(r"^  .*: (about .*)", text, re.M)


def test_the_table_and_the_answers_of_a_real_curve(tmp_path, capsys):
    figure = tmp_path / "laws.png"
    path = JFT / "BiT-101-3_inet_10.csv"
    text = printed(capsys, path, "--chance", 0.999, "--target-error", 0.3, 0.2, "--figure", figure, "--bootstrap", 30)
    assert f"{path}: 21 points at 21 sizes, 12 held out\n" in text
    for name in ("log-linear", "power (M1)", "asymptote (M2)", "shifted (M3)", "sigmoid from chance (M4)", "broken",
                 "broken (2 breaks)"):
        assert re.search(rf"^  {re.escape(name)}  ", text, re.M), name
    assert "extrapolate" in text and "by all laws together:\n  at 1.2 billion images: error 0.28, 50 % interval" in text
    curve, = curves.read_curves(path)
    estimate = prediction.predict(curve, 0.999, samples=30).size_for(0.3)
    assert f"error 0.3: about {curves.format_count(estimate.size.median)} images, 50 % interval" in text
    reached = re.search(r"error 0.2: reached within 5.99e\+12 images with probability ([\d.]+);", text)
    assert 0.1 < float(reached[1]) < 0.4
    assert "one more run of" in text and figure.read_bytes().startswith(b"\x89PNG")


def test_one_law_alone_and_sizes_that_are_asked_for(tmp_path, capsys):
    path = write_csv(tmp_path / "two.csv", [f"{c},{x},{k / x**0.3},{s}" for c, k in (("a$b", 3), ("_c", 4))
                                           for s in (0, 1) for x in 100 * 2**np.arange(10)], "curve,images,error,seed")
    text = printed(capsys, path, "--law", "asymptote", "--at", "50", "1e6", "--chance", "1", "--figure",
                   tmp_path / "two.svg")
    assert "a$b: 20 points at 10 sizes\n" in text and "_c: 20 points at 10 sizes\n" in text
    assert text.count("by asymptote (M2):\n  at 50 images: error") == 2 and text.count("\n  at 1 million images") == 2
    assert float(re.search(r"at 50 images: error ([\d.]+),", text)[1]) == pytest.approx(3 * 50**-0.3, rel=0.1)
    for name, full in (("broken", "broken"), ("broken (2 breaks)", "broken (2 breaks)"), ("power (M1)", "power (M1)"),
                       ("sigmoid", "sigmoid (M4)"), ("log-linear", "log-linear")):
        assert f"\nby {full}:\n" in printed(capsys, path, "--law", name, "--bootstrap", 20)
    text = printed(capsys, path, "--law", "log-linear", "--at", "1e9", "--target-error", "0.1", "9")
    assert "at 1 billion images: no answer, as log-linear falls to an error of 0 before" in text
    assert "error 9: reached with fewer than 10 images" in text


@pytest.mark.parametrize("whole", [True, False])
def test_results_give_the_answer_of_their_errors(tmp_path, capsys, whole):
    """In terms of the metric, with chance from the number of classes."""
    folder = write_results(tmp_path / "study", STUDY)
    of_errors = printed(capsys, write_csv(tmp_path / "e.csv", ERRORS, "images,error,seed"), "--chance", 0.9,
                        "--target-error", 0.3, 0.7)
    of_study = printed(capsys, folder if whole else folder / "results.csv", "--target", 0.7, 0.3)
    assert f"{folder if whole else folder / 'results.csv'}: 15 points at 5 sizes\n" in of_study
    assert "sigmoid from chance (M4)" in of_study and "test/top1 0.7: about" in of_study
    (errors, sizes), (values, same_sizes) = numbers(of_errors), numbers(of_study)
    assert sizes == same_sizes and len(sizes) == 2 and len(errors) == len(values) == 2
    for one, other in zip(errors, values, strict=True):
        median, low50, high50, low95, high95 = one
        assert low95 < low50 < median < high50 < high95
        mirrored = [1 - value for value in (median, high50, low50, high95, low95)]
        assert other == pytest.approx(mirrored, abs=0.0011)
    unknown = write_results(folder, [run | {"classes": ""} for run in STUDY])
    assert "sigmoid (M4)" in printed(capsys, unknown)


def test_results_know_direction_and_chance(tmp_path, capsys):
    rows = [row | {"main_metric": "test/loss", "direction": "lower"} for row in STUDY]
    folder = write_results(tmp_path / "study", rows)
    text = printed(capsys, folder)
    (median, low, high, *_), *_ = numbers(text.replace("test/loss", "error"))[0]
    assert low < median < high and median == pytest.approx(4 * (0.2 + 0.6 * 32**-0.5), rel=0.05)
    assert printed(capsys, write_results(folder, STUDY), "--score", "test/loss", "--lower-is-better") == text
    text = printed(capsys, write_results(folder, [row | {"test/top1_chance": 0.25} for row in STUDY]), "--target", 0.2)
    assert "test/top1 0.2: reached with fewer than 50 images" in text
    text = printed(capsys, folder, "--chance", "0.15", "--target", 0.2)
    assert "test/top1 0.2: about" in text


def test_one_curve_without_an_answer_leaves_that_of_the_others(tmp_path, capsys):
    others = [run(n, s, 0.5, depth=34) for n in SIZES for s in SEEDS]
    others += [run(n, 0, 1 - error_at(n) / 2, depth=50) for n in SIZES[:3]]
    others += [run(n, 0, 1.0 if n == 8000 else 0.5, depth=101) for n in SIZES]
    text = printed(capsys, write_results(tmp_path / "study", STUDY + others))
    assert text.count("by all laws together") == 1 and "depth 18: 15 points" in text
    assert "curve 'depth 34': all 15 errors are 0.5: no law" in text
    assert "curve 'depth 50': too few sizes to say: 3 different ones; run also N = 250, 4,000\n" in text
    assert "depth 101: test/top1 of run 'd101-n8000-s0' is 1, expected scores below 1; evaluate on more images" in text


@pytest.mark.parametrize(("change", "flags", "message"), [
    ({"value": 1.0}, [], "test/top1 of run 'd18-n8000-s0' is 1, expected scores below 1; evaluate on more images"),
    ({}, ["--score", "test/loss"], "is 3.2, expected scores below 1; evaluate on more images, choose another metric, "
                                   "or give --lower-is-better"),
    ({"test/loss": 0.0}, ["--score", "test/loss", "--lower-is-better"], "is 0, expected values above 0"),
    ({}, ["--score", "test/top"], "no such column in .*; did you mean 'test/top1'"),
    ({}, ["--target", "1"], "--target 1: expected a score below 1"),
    ({}, ["--target", "75"], "--target 75: expected a score below 1"),
    ({}, ["--chance", "1"], "--chance 1: expected a score below 1"),
    ({}, ["--chance", "0.9"], "the error at the largest size, .*, is above that of guessing, 0.1; expected --chance"),
    ({}, ["--error", "test/loss"], "--error 'test/loss': .* holds the results of runs, .*; give --score"),
    ({}, ["--x", "images"], "--x 'images': .* holds the results of runs"),
    ({}, ["--score", "test/top1", "--law", "power", "--figure", "a.doc"], ".png or .svg"),
])
def test_results_that_are_refused(tmp_path, change, flags, message):
    rows = [run(n) for n in SIZES[:-1]] + [run(8000, **change)]
    with pytest.raises(UserError, match=message) as error:
        command([str(write_results(tmp_path / "study", rows)), *flags])
    assert "\n" not in str(error.value)


def test_results_without_a_curve(tmp_path):
    with pytest.raises(UserError, match="no runs that differ in images alone"):
        command([str(write_results(tmp_path / "study", [run(500), run(500, 1)]))])
    rising = [run(n, 0, error_at(n)) for n in SIZES]
    with pytest.raises(UserError, match="errors rise with the size"):
        command([str(write_results(tmp_path / "study", rising))])


def test_few_sizes_are_told_which_to_add(tmp_path, capsys):
    for count, names in ((1, "N = 25, 50, 200, 400"), (2, "N = 25, 50, 400"), (3, "N = 50, 800")):
        path = write_csv(tmp_path / "few.csv", [f"{100 * 2**i},{0.5 - i / 10}," for i in range(count)], "x,error,note")
        text = printed(capsys, path)
        assert f"few.csv: {count} points at {count} sizes\n" in text and "by all laws" not in text
        assert f"too few sizes to say: {count} different ones; run also {names}\n" in text
    with pytest.raises(UserError, match="--figure: there is nothing to draw"):
        command([path, "--figure", str(tmp_path / "none.png")])


def test_downstream_against_upstream(tmp_path, capsys):
    path = write_csv(tmp_path / "up.csv", [f"{u},{0.1 + u**2}" for u in (0.2, 0.3, 0.5, 0.7)], "up,error")
    text = printed(capsys, path, "--upstream", "up", "--bootstrap", "20")
    assert "fitted to the 4 of 4 runs" in text and "alpha: 2, between" in text


@pytest.mark.parametrize(("rows", "header", "message"), [
    (["100,0.5,train", "200,0.5,train", "300,0.5,train"], None, "all 3 errors are 0.5"),
    (["100,0.5,", "200,0.6,", "300,0.7,", "400,0.8,"], "x,error,note", "errors rise with the size, from 0.5 to 0.8"),
    (["100,-0.5,train", "200,0.4,train"], None, "line 2: error is -0.5, expected a number above 0"),
    (["100,0.5,train", "200,0,train"], None, "line 3: error is 0, expected a number above 0"),
    (["100,0.5,train", "200,nan,train"], None, "line 3: error is nan, expected a number above 0"),
    (["100,0.5,train", "200,,train"], None, "line 3: error is '', expected a number"),
    (["0,0.5,train", "200,0.4,train"], None, "x is 0, expected a number above 0"),
    (["200,0.5,train", "100,0.6,train"], None, "line 3: sizes out of order: 100 after 200"),
    (["100,0.5,train", "300,0.4,train", "200,0.4,extrapolate"], None, "sizes out of order: extrapolate at 200"),
    (["100,0.5,train", "200,0.4,train", "200,0.4,extrapolate"], None, "sizes out of order: extrapolate at 200"),
    (["100,0.5,train", "200,0.5,train"], None, "all 2 errors are 0.5"),
    (["100,0.5,extrapolate"], None, "no rows to fit"),
    (["100,0.5,test"], None, "split is 'test', expected 'train' or 'extrapolate'"),
    (["100,0.5,train"], "x,eror,split", "no column 'error'; did you mean 'eror'?"),
    (["100,0.5"], None, "line 2 does not have 3 fields"),
    (["100,0.5,train"], "x,x,error", "column 'x' appears twice"),
    (["100,0.5,train", "200,1e-300,train"], None, "line 3: error is 1e-300, expected a number above 0, from 1e-30"),
    (["100,0.5,train", "200,1.7e308,train"], None, "line 3: error is 1.7e308, expected a number above 0, from 1e-30"),
    (["100,0.5,train", "1e300,0.4,train"], None, "line 3: x is 1e300, expected a number above 0, from 1e-30 to 1e+30"),
    (["100,0.5,train", "inf,0.4,train"], None, "line 3: x is inf, expected a number above 0, from 1e-30 to 1e+30"),
    ([f"100,0.5,{'a' * 200_000}"], None, "field larger than field limit (131072); expected a csv file"),
    (['100,0.5,"train'], None, "expected a csv file"),
    ([], None, "no rows"),
])
def test_bad_files(tmp_path, rows, header, message):
    path = write_csv(tmp_path / "bad.csv", rows, header or "x,error,split")
    with pytest.raises(UserError) as error:
        command([path])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("flags", "message"), [
    (["--law", "powr"], "no such law; did you mean 'power'"), (["--law", "broken (3 breaks)"], "no such law"),
    (["--law", "sigmoid"], "--law 'sigmoid': needs 5 sizes, the curve has 4"),
    (["--target-error", "-1"], "--target-error -1: expected numbers above 0"), (["--at", "0"], "--at 0: expected "),
    (["--target", "-1"], "--target -1: expected an error above 0"), (["--bootstrap", "19"], "at least 20"),
    (["--figure", "x.doc"], ".png or .svg"), (["--chance", "0"], "--chance 0: expected an error above 0"),
    (["--chance", "inf"], r"up to 1e\+30"), (["--target-error", "0.3", "nan"], "nan: expected"),
    (["--chance", "0.01"], "is above that of guessing, 0.01"), (["--upstream", "z"], "no column 'z'"),
    (["--score", "error"], "has no column 'run', so it is no results.csv; give --error instead"),
])
def test_bad_arguments(tmp_path, flags, message):
    rows = [f"{100 * 2**i},{0.5 - i / 10}," for i in range(4)]
    with pytest.raises(UserError, match=message) as error:
        command([write_csv(tmp_path / "good.csv", rows, "x,error,note"), *flags])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        command([str(tmp_path / "none.csv")])
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match=r"cannot read .*binary\.csv: .*; expected a csv file"):
        command([str(tmp_path / "binary.csv")])
    with pytest.raises(UserError, match=r"no results\.csv in"):
        command([str(tmp_path)])
