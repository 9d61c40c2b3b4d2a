"""The report of a study: what it shows, what it notes as missing, and that the page is self-contained."""

import base64
import csv
import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from PIL import Image
from scipy import stats
from small_studies import small_experiment
from toy_head import ToyHead

from big_vision_lite.commands.laws import report as command
from big_vision_lite.errors import UserError
from big_vision_lite.heads.head import MainMetric
from big_vision_lite.scaling.laws import answers, curves, prediction
from big_vision_lite.scaling.paper.tables import TABLES
from big_vision_lite.scaling.report import figures, report, series
from big_vision_lite.scaling.report.series import Metric
from big_vision_lite.training.loop import train

EVIL = '<script>alert("x")</script>$x_1$ & co'


def row(run, images, seed=0, value=None, **more):
    error = 0.05 + 0.9 * (1 + images / 500)**-0.4 * (1 + 0.02 * seed)
    return {"run": run, "study": "data_size", "status": "done", "stage": "pretraining", "head": "Classification",
            "init": "random", "images": images, "depth": 18, "seed": seed, "noise": 0.0, "classes": 64, "frozen": False,
            "main_metric": "test/mAP", "direction": "higher", "unit": "",
            "test/mAP": 1 - error if value is None else value, "test/loss": error, **more}


def study_rows():
    rows = [row(f"n{n}-s{s}", n, s) for n in (500, 2000, 8000, 32000, 128000) for s in (0, 1, 2)]
    rows += [row(f"deep-n{n}-s{s}", n, s, depth=34) for n in (500, 8000, 128000) for s in (0, 1)]
    rows += [row(f"noise{w}", 8000, 0, 0.5 - w / 2, noise=w) for w in (0.1, 0.2, 0.4)]
    rows += [row(f"classes{c}", 8000, 0, 0.4 + c / 1000, classes=c) for c in (8, 16)]
    rows += [row(f"{kind}-{n}", n, 0, 0.1 * i + 0.2 * (kind == "tuned"), stage="transfer", frozen=kind == "frozen",
                 init=f"n{n}-s0") for kind in ("tuned", "frozen") for i, n in enumerate((500, 2000, 8000), 1)]
    return rows


def write_results(folder: Path, rows) -> Path:
    folder.mkdir(exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(folder / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A study's report: with a failed run, one without metrics, two of one name, and names that must be escaped."""
    rows = [*study_rows(), row(EVIL, 8000, 3), row("bad", 8000, 0, status="failed"),
            {**row("empty", 8000), "test/mAP": "", "test/loss": ""}, row("twice", 500, 7),
            row("twice", 500, 7, depth=50), row("../outside", 8000, 4)]
    folder = write_results(tmp_path_factory.mktemp("report") / "study", rows)
    for run in ("n128000-s0", "../outside"):
        (folder / run).mkdir()
        Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(folder / run / "predictions.png")
    (folder / "n32000-s0").mkdir()
    (folder / "n32000-s0" / "predictions.png").write_bytes(b"\x89PNG and no more")
    lines = report.write_report([folder], bootstrap=20)
    return folder, (folder / "report.html").read_text(), lines


def test_page_holds_every_part(reported):
    folder, page, _ = reported
    for part in ("Capacity", "Noise", "Vocabulary", "Frozen against fine-tuned", "More images: pretraining",
                 "at 256,000 images: test/mAP 0.", "at 1.28 million images: test/mAP 0.", "one more run of ",
                 "Predictions", "Where the numbers come from", "<th>median</th>", "sigmoid (M4)"):
        assert part in page, part
    names = {path.name for path in (folder / "figures").iterdir()}
    stems = {name.rsplit(".")[0] for name in names}
    assert names == {f"{stem}.{form}" for stem in stems for form in ("png", "svg")}
    for ending in ("images", "depth", "noise", "classes", "frozen"):
        assert any(stem.endswith(ending) for stem in stems), ending
    for path in (folder / "figures").glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.std() > 5 and pixels.shape[1] > 800


def test_page_needs_nothing_else_and_escapes_names(reported):
    _, page, _ = reported
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "<script" not in page and "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;$x_1$ &amp; co" in page
    assert page.count("data:image/jpeg") == 1  # neither the broken picture nor the one outside
    for encoded in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page):
        assert b"<svg" in base64.b64decode(encoded)


def test_page_says_what_is_missing(reported):
    _, page, lines = reported
    for note in ("run 'bad' is failed", "run 'empty' has no metrics",
                 "run 'twice' appears twice, with different depth", "run 'n32000-s0': predictions.png cannot be read"):
        assert any(note in line for line in lines), note
        assert note.replace("'", "&#x27;") in page


def test_many_unfinished_runs_are_one_line(tmp_path):
    lines = ["run,study,status,images,test/top1", "one,some,done,10,0.5", "bad,some,failed,10,",
             *(f"{name},some,missing,10," for name in "abcd")]
    (tmp_path / "results.csv").write_text("\n".join(lines))
    assert series.read_results([tmp_path]).notes == ("run 'bad' is failed",
                                             "4 runs of some are missing, the first of them 'a'")


def test_medians_and_levels(reported):
    folder = reported[0]
    runs = series.read_results([folder]).tasks()["pretraining, Classification"]
    main = series.main_series(runs, Metric("test/mAP"), "mAP")
    assert list(main.sizes()) == [500, 2000, 8000, 32000, 128000]
    depths = series.series_along(runs, Metric("test/mAP"), "depth")
    assert [one.label for one in depths] == ["18", "34"]
    noise = series.series_along(runs, Metric("test/mAP"), "noise")
    assert [one.label for one in noise] == ["0.0", "0.1", "0.2", "0.4"]


def test_same_bytes_again(reported, tmp_path):
    folder = write_results(tmp_path / "a", study_rows()[:6])
    for out in ("one", "two"):
        report.write_report([folder], tmp_path / out, bootstrap=20)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_renders_with_what_is_there(tmp_path, capsys):
    cases = {
        "nothing is finished": ([row("a", 500, status="missing")], "no run is finished"),
        "sizes": ([row("a", 500), row("b", 500, 1)], "no runs with two or more numbers of images"),
        "three sizes": ([row(str(n), n) for n in (500, 1000, 2000)],
                        "too few sizes to say: 3 different ones; run also N = 250, 4,000"),
        "no images": ([{"run": "a", "accuracy": 0.5}], "no runs with two or more numbers of images"),
        "equal": ([row(str(n), n, 0, 0.5) for n in (1, 2, 3)], "all 3 errors are 0.5"),
        "rising": ([row(str(n), n, 0, 0.5 - n / 100) for n in (1, 2, 3, 4)], "errors rise with the size"),
        "no main": ([{"run": "a", "images": 5, "top1": 0.5}], "no run names its main metric; top1 is drawn"),
        "perfect": ([row(str(n), n, 0, 1.0) for n in (1, 2, 3)], "test/mAP of run '1' is 1, expected scores below 1"),
        "not a number": ([{**row("a", 5), "test/mAP": "nan"}], "test/mAP is 'nan', not a number"),
        "factors": ([row(str(n), n, classes=c) for n in (5, 50) for c in ("None", 8, "x" * 3000)], "figures as PNG"),
        "noise": ([row(str(n), n, noise=c) for n in (5, 50) for c in ("nan", 0.1)], "figures as PNG"),
        "huge": ([row(str(n), n) for n in (5, 50, 500, 1e300)], "run '1e+300': images is '1e+300', expected"),
    }
    for name, (rows, note) in cases.items():
        folder = write_results(tmp_path / name, rows)
        assert command([str(folder), "--bootstrap", "20"]) == 0
        assert note in capsys.readouterr().out, name
        assert (folder / "report.html").read_text().endswith("</html>\n")


def test_several_studies_and_the_paper(tmp_path, capsys):
    one = write_results(tmp_path / "one", [row(f"n{n}", n) for n in (500, 2000, 8000, 32000)])
    name = next(iter(TABLES))
    first = next(iter(TABLES[name].rows))
    photos = {"study": "photos", "classes": 10, "table": name, "row": first, "test/mAP": "", "main_metric": "test/top1"}
    two = write_results(tmp_path / "two", [{**row(f"n{n}", n), **photos, "test/top1": 1 - n**-0.2}
                                           for n in (500, 2000, 8000, 32000)])
    assert command([str(one), str(two), "--out", str(tmp_path / "out"), "--bootstrap", "20"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data_size (mAP on test)" in page and "photos (top-1 accuracy on test)" in page
    assert TABLES[name].title in page and page.rindex("<h2>What is missing") > page.index("Where the numbers come from")
    assert "sigmoid from chance" in page  # the number of classes gives the chance-level error
    assert not (one / "report.html").exists()
    capsys.readouterr()
    assert command([str(two), "--table", name]) == 0
    assert "reported" in capsys.readouterr().out


@pytest.mark.parametrize("main, label, score", [
    (("test/r2", "higher", ""), "r2 on test", "test/r2 0.799"),
    (("test/rmse", "lower", "px"), "rmse on test (px, lower is better)", "test/rmse 1.51"),
    (("test/accuracy", "higher", "%"), "accuracy on test (%)", "test/accuracy 98.5"),
])
def test_main_metrics_keep_their_direction_and_unit(tmp_path, main, label, score):
    sizes = (500, 2000, 8000, 32000)
    values = {"test/r2": [1 - 40 * n**-0.5 for n in sizes], "test/rmse": [300 * n**-0.5 for n in sizes],
              "test/accuracy": [100 - 300 * n**-0.5 for n in sizes]}[main[0]]
    assert main[0] != "test/r2" or values[0] < 0 < values[-1]
    columns = dict(zip(("main_metric", "direction", "unit"), main, strict=True))
    rows = [{"run": f"n{n}", "study": "own", "images": n, "seed": 0, **columns, main[0]: value, "test/AP": 0.5}
            for n, value in zip(sizes, values, strict=True)]
    folder = write_results(tmp_path, rows)
    runs = series.read_results([folder]).runs
    metric = series.main_metric(runs)
    assert metric == Metric(main[0], main[1] == "higher", main[2])
    curve = series.main_series(runs, metric, "a").curve()
    np.testing.assert_allclose(curve.error, {"test/r2": 40, "test/rmse": 300, "test/accuracy": 300}[main[0]]
                               * np.array(sizes)**-0.5)
    drawn = figures.draw_sizes([series.main_series(runs, metric, "a")], [None], "").axes[0]
    assert drawn.get_ylabel() == label
    assert (drawn.get_ylim()[0] == 0) == (main[0] == "test/accuracy")
    report.write_report([folder], bootstrap=20)
    page = html.unescape((folder / "report.html").read_text())
    assert f"Table: {label}<" in page
    assert f"{label[0].upper()}{label[1:]} against images; predictions by all laws together" in page
    assert f"a tenth less error than the best so far, {score}: " in page
    assert f"{min(values):.4g}</td>" in page


@pytest.mark.usefixtures("compile_once")
def test_a_head_with_its_own_main_metric(tmp_path):
    for main, label in ((MainMetric("r2"), "R2 on validation"),
                        (MainMetric("rmse", False, "px"), "Rmse on validation (px, lower is better)")):
        run = tmp_path / main.name
        value = train(small_experiment(head=ToyHead(main=main), steps=1), run)[f"validation/{main.name}"]
        assert command([str(run), "--import", "toy_head", "--bootstrap", "20"]) == 0
        page = html.unescape((run / "report.html").read_text())
        assert f"{label}: {value:.4g} on " in page
        assert (value < 0) == (main.name == "r2")


def test_a_metric_that_is_no_runs_main_metric(tmp_path, capsys):
    folder = write_results(tmp_path, [row(f"n{n}", n) for n in (500, 2000, 8000)])
    for flags, label in ((["--lower-is-better"], "loss on test (lower is better)"), ([], "loss on test")):
        assert command([str(folder), "--metric", "test/loss", *flags, "--bootstrap", "20"]) == 0
        assert f"Table: {label}<" in (folder / "report.html").read_text()
    # Without a known best value there is no error to fit.
    rows = [row(f"n{n}", n, main_metric="test/psnr", unit="dB", **{"test/psnr": n**0.1}) for n in (500, 2000, 8000)]
    assert command([str(write_results(tmp_path / "psnr", rows)), "--bootstrap", "20"]) == 0
    assert "nothing was predicted: the highest value of test/psnr (dB) is unknown" in capsys.readouterr().out


def test_bad_input(tmp_path):
    folder = write_results(tmp_path / "study", [row("a", 500)])
    write_results(tmp_path / "direction", [row("a", 500, direction="up")])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.csv").write_text("name,value\na,1\n")
    for arguments, message in (([tmp_path / "none"], "no results.csv in"), ([tmp_path / "other"], "no column 'run'"),
                            ([folder, "--metric", "test/map"], "no metric 'test/map'.*did you mean 'test/mAP'"),
                            ([folder, "--table", "cocoa"], "no such table; did you mean 'coco'"),
                            ([tmp_path / "direction"], "run 'a': direction is 'up', expected 'higher' or 'lower'"),
                            ([folder, "--bootstrap", "2"], "at least 20"),
                            ([folder, "--out", folder / "results.csv"], "cannot write")):
        with pytest.raises(UserError, match=message) as error:
            command([*map(str, arguments)])
        assert "\n" not in str(error.value)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_opens_in_a_browser(reported, tmp_path):
    """All pictures load, nothing is logged, and nothing but a table's own frame is wider than a phone."""
    counted = """<script>addEventListener("load", () => { document.title = JSON.stringify([
        [...document.images].filter(i => !i.naturalWidth).length, document.images.length,
        document.documentElement.scrollWidth <= innerWidth]); });</script>"""
    page = tmp_path / "page.html"
    page.write_text(reported[1].replace("</body>", counted + "</body>"))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,900",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", f"file://{page}"],
        capture_output=True, text=True, timeout=120, check=True)
    assert re.search(r"<title>\[0,\d+,true\]</title>", done.stdout), re.search("<title>.*</title>", done.stdout)
    assert "CONSOLE" not in done.stderr


def error_bars(axis) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions, means and half widths of each set of error bars, as drawn."""
    read = []
    for line, _, bars in (container.lines for container in axis.containers):
        low, high = np.array([segment[:, 1] for segment in bars[0].get_segments()]).T if bars else (np.zeros(0),) * 2
        read.append((np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), (high - low) / 2))
    return read


def test_what_figures_show_is_what_they_say(tmp_path):
    """Axes, legends, means and 95 % intervals, read back from the drawing."""
    values = {100: (0.2, 0.26, 0.23), 1000: (0.5, 0.52), 10_000: (0.7,)}
    rows = [row(f"n{n}-s{seed}-d{depth}", n, seed, value + depth / 1000, depth=depth)
            for depth in (18, 34) for n, at in values.items() for seed, value in enumerate(at)]
    rows += [row(f"w{w}-{n}", n, 0, 0.5 - w + n / 1e5, noise=w) for w in (0.1, 0.2) for n in (100, 1000)]
    runs = series.read_results([write_results(tmp_path, rows)]).runs
    depths = series.series_along(runs, Metric("test/mAP"), "depth")
    axis = figures.draw_sizes(depths, [None, None], "Title", legend="depth").axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title(loc="left")) == ("images", "mAP on test", "Title")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["18", "34"]
    assert axis.get_legend().get_title().get_text() == "depth" and axis.get_xscale() == "log"
    residuals = np.concatenate([np.subtract(at, np.mean(at)) for at in values.values()])
    deviation = np.sqrt((residuals**2).sum() / 3)  # six values less three means
    for (x, mean, half), depth in zip(error_bars(axis), (18, 34), strict=True):
        assert x.tolist() == list(values)
        np.testing.assert_allclose(mean, [np.mean(at) + depth / 1000 for at in values.values()])
        expected = [stats.t.interval(0.95, 3, scale=deviation / len(at)**0.5)[1] for at in values.values()]
        np.testing.assert_allclose(half, expected)

    noise = series.series_along(runs, Metric("test/mAP"), "noise")
    axis = figures.draw_levels(noise, "", "share of labels that are wrong").axes[0]
    assert axis.get_xlabel() == "share of labels that are wrong" and axis.get_xscale() == "linear"
    assert [text.get_text() for text in axis.get_legend().get_texts()][:2] == ["100", "1,000"]
    (x, mean, _), *_ = error_bars(axis)
    assert x.tolist() == [0.0, 0.1, 0.2] and mean[1:] == pytest.approx([0.5 - w + 100 / 1e5 for w in (0.1, 0.2)])


def bands(axis) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions and ends of each band, as drawn."""
    read = []
    for band in axis.collections:
        if not isinstance(band, PolyCollection):  # an error bar
            continue
        x, y = band.get_paths()[0].vertices.T
        at = np.unique(x)
        read.append((at, *(np.array([end(y[x == one]) for one in at]) for end in (np.min, np.max))))
    return read


@pytest.mark.parametrize("terms", [answers.ERRORS, answers.Terms("accuracy", lambda error: 1 - error, True)],
                         ids=["error", "accuracy"])
def test_figures_of_predictions_show_what_the_answers_say(terms):
    curve = curves.from_points([100, 200, 400, 800, 1600], [0.5, 0.41, 0.33, 0.27, 0.24],
                               held_out=[False, False, False, False, True])
    predicted = prediction.predict(curve, samples=20)
    axis = figures.draw_predictions([(predicted, terms)]).axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale()) == ("images", terms.name, "log")
    assert axis.get_yscale() == ("linear" if terms.higher_is_better else "log")
    fitted, held_out = (line for line in axis.lines if line.get_linestyle() == "None")
    assert fitted.get_xdata().tolist() == [100, 200, 400, 800] and held_out.get_xdata().tolist() == [1600]
    assert held_out.get_ydata()[0] == pytest.approx(terms.convert(0.24))
    assert fitted.get_markerfacecolor() != held_out.get_markerfacecolor() == "none"
    solid, dashed = (line for line in axis.lines if line.get_linestyle() != "None")
    assert solid.get_xdata()[[0, -1]].tolist() == pytest.approx([100, 800]) and dashed.is_dashed()
    assert dashed.get_xdata()[[0, -1]].tolist() == pytest.approx([800, 8000])
    wide, narrow = bands(axis)
    for x in (100.0, 800.0, 8000.0):
        error, = predicted.errors([x])
        drawn = np.interp(x, *(dashed if x > 800 else solid).get_data())
        assert drawn == pytest.approx(terms.convert(error.median))
        for (at, low, high), interval in zip((narrow, wide), error.intervals, strict=True):
            i = np.abs(at - x).argmin()
            assert [low[i], high[i]] == pytest.approx(sorted(map(terms.convert, interval)), rel=1e-3)


def test_studies_and_csv_files_share_the_band(tmp_path):
    rows = [row(f"n{n}-s{seed}", n, seed) for n in (500, 2000, 8000, 32000) for seed in (0, 1)]
    line = series.main_series(series.read_results([write_results(tmp_path, rows)]).runs, Metric("test/mAP"), "mAP")
    predicted = prediction.predict(line.curve(), samples=20)
    terms = answers.Terms("test/mAP", line.metric.to_error, True)
    one, other = (bands(figure.axes[0]) for figure in (figures.draw_sizes([line], [predicted], ""),
                                                       figures.draw_predictions([(predicted, terms)])))
    assert len(one) == 2
    np.testing.assert_array_equal(one, other)
