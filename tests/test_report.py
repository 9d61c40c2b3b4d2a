"""The report of a study: what it shows, what it says is missing, and that nothing in it comes from outside."""

import base64
import csv
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.commands.laws import report as command
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.detection import DetectionScores, truth_of
from big_vision_lite.scaling import report, series
from big_vision_lite.scaling.paper import TABLES

EVIL = '<script>alert("x")</script>$x_1$ & co'


def row(run, images, seed=0, value=None, **more):
    error = 0.05 + 0.9 * (1 + images / 500)**-0.4 * (1 + 0.02 * seed)
    return {"run": run, "study": "data_size", "status": "done", "stage": "pretraining", "head": "Classification",
            "init": "random", "images": images, "depth": 18, "seed": seed, "noise": 0.0, "classes": 64, "frozen": False,
            "test/mAP": 1 - error if value is None else value, "test/loss": error, **more}


def study():
    rows = [row(f"n{n}-s{s}", n, s) for n in (500, 2000, 8000, 32000, 128000) for s in (0, 1, 2)]
    rows += [row(f"deep-n{n}-s{s}", n, s, depth=34) for n in (500, 8000, 128000) for s in (0, 1)]
    rows += [row(f"noise{w}", 8000, 0, 0.5 - w / 2, noise=w) for w in (0.1, 0.2, 0.4)]
    rows += [row(f"classes{c}", 8000, 0, 0.4 + c / 1000, classes=c) for c in (8, 16)]
    rows += [row(f"{kind}-{n}", n, 0, 0.1 * i + 0.2 * (kind == "tuned"), stage="transfer", frozen=kind == "frozen",
                 init=f"n{n}-s0") for kind in ("tuned", "frozen") for i, n in enumerate((500, 2000, 8000), 1)]
    return rows


def write(folder: Path, rows):
    folder.mkdir(exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(folder / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole study's report; with a run that failed, one without metrics, two of one name, and names that bite."""
    rows = [*study(), row(EVIL, 8000, 3), row("bad", 8000, 0, status="failed"),
            {**row("empty", 8000), "test/mAP": "", "test/loss": ""}, row("twice", 500, 7),
            row("twice", 500, 7, depth=50), row("../outside", 8000, 4)]
    folder = write(tmp_path_factory.mktemp("report") / "study", rows)
    for run in ("n128000-s0", "../outside"):
        (folder / run).mkdir()
        Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(folder / run / "predictions.png")
    (folder / "n32000-s0").mkdir()
    (folder / "n32000-s0" / "predictions.png").write_bytes(b"\x89PNG and no more")
    said = report.write([folder], draws=20)
    return folder, (folder / "report.html").read_text(), said


def test_page_holds_every_part(made):
    folder, html, _ = made
    for part in ("Capacity", "Noise", "Vocabulary", "Frozen against fine-tuned", "Laws: pretraining", "you need about",
                 "Predictions", "Where the numbers come from", "<th>median</th>", "sigmoid (M4)"):
        assert part in html, part
    names = {path.name for path in (folder / "figures").iterdir()}
    stems = {name.rsplit(".")[0] for name in names}
    assert names == {f"{stem}.{form}" for stem in stems for form in ("png", "svg")}
    for ending in ("images", "depth", "noise", "classes", "frozen"):
        assert any(stem.endswith(ending) for stem in stems), ending
    for path in (folder / "figures").glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.std() > 5 and pixels.shape[1] > 800


def test_page_needs_nothing_else_and_escapes_names(made):
    _, html, _ = made
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', html)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "<script" not in html and "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;$x_1$ &amp; co" in html
    assert html.count("data:image/jpeg") == 1  # neither the broken picture nor the one outside
    for held in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html):
        assert b"<svg" in base64.b64decode(held)


def test_page_says_what_is_missing(made):
    _, html, said = made
    for note in ("run 'bad' is failed", "run 'empty' has no metrics",
                 "run 'twice' is there twice, with different depth", "run 'n32000-s0': predictions.png cannot be read"):
        assert any(note in line for line in said), note
        assert note.replace("'", "&#x27;") in html


def test_many_unfinished_runs_are_one_line(tmp_path):
    lines = ["run,study,status,images,test/top1", "one,some,done,10,0.5", "bad,some,failed,10,",
             *(f"{name},some,missing,10," for name in "abcd")]
    (tmp_path / "results.csv").write_text("\n".join(lines))
    assert series.read([tmp_path]).notes == ("run 'bad' is failed",
                                             "4 runs of some are missing, the first of them 'a'")


def test_medians_and_levels(made):
    folder = made[0]
    runs = series.read([folder]).tasks()["pretraining, Classification"]
    main = series.reference(runs, "test/mAP", "mAP")
    assert list(main.sizes()) == [500, 2000, 8000, 32000, 128000]
    depths = series.along(runs, "test/mAP", "depth")
    assert [one.label for one in depths] == ["18", "34"]
    noise = series.along(runs, "test/mAP", "noise")
    assert [one.label for one in noise] == ["0.0", "0.1", "0.2", "0.4"]


def test_same_bytes_again(made, tmp_path):
    rows = study()[:6]
    first = write(tmp_path / "a", rows)
    for out in ("one", "two"):
        report.write([first], tmp_path / out, draws=20)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_renders_with_what_is_there(tmp_path, capsys):
    cases = {
        "nothing is finished": ([row("a", 500, status="missing")], "no run is finished"),
        "sizes": ([row("a", 500), row("b", 500, 1)], "no runs tell two or more numbers of images"),
        "no images": ([{"run": "a", "accuracy": 0.5}], "no runs tell two or more numbers of images"),
        "equal": ([row(str(n), n, 0, 0.5) for n in (1, 2, 3)], "all 3 errors are 0.5"),
        "perfect": ([row(str(n), n, 0, 1.0) for n in (1, 2, 3)], "error 0 in point 1"),
        "not a number": ([{**row("a", 5), "test/mAP": "nan"}], "test/mAP is 'nan', not a number"),
    }
    for name, (rows, note) in cases.items():
        folder = write(tmp_path / name, rows)
        assert command([str(folder), "--draws", "20"]) == 0
        assert note in capsys.readouterr().out, name
        assert (folder / "report.html").read_text().endswith("</html>\n")


def test_several_studies_and_the_paper(tmp_path, capsys):
    one = write(tmp_path / "one", [row(f"n{n}", n) for n in (500, 2000, 8000)])
    name = next(iter(TABLES))
    first = next(iter(TABLES[name].rows))
    photos = {"study": "photos", "classes": 10, "table": name, "row": first, "test/mAP": ""}
    two = write(tmp_path / "two", [{**row(f"n{n}", n), **photos, "test/top1": 1 - n**-0.2} for n in (500, 2000, 8000)])
    assert command([str(one), str(two), "--out", str(tmp_path / "out"), "--draws", "20"]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "data_size (test/mAP)" in html and "photos (test/top1)" in html and TABLES[name].title in html
    assert "sigmoid from chance" in html  # ten classes tell the error of guessing
    assert not (one / "report.html").exists()
    capsys.readouterr()
    assert command([str(two), "--table", name]) == 0
    assert "reported" in capsys.readouterr().out


def test_the_main_metric_of_a_detection_run():
    records = EmojiScenes("test", 1, size=32, classes=2).open()
    truth = truth_of(records[0], 0)[1]
    scores = DetectionScores(records)
    valid = np.ones((1, len(truth.label)), bool)
    scores.add(truth.boxes[None], valid.astype(float), truth.label[None], valid, np.array([0]), np.array([True]))
    metrics = {f"test/{name}": value for name, value in scores.result().items()}

    def main(*but: str) -> str:
        left = {name: value for name, value in metrics.items() if name.partition("/")[2] not in but}
        run = series.Result("a", Path(), "transfer, FasterRCNN", None, "0", {}, left)
        return series.main_metric([run], list(left))

    assert (main(), main("AP"), main("AP", "AP50")) == ("test/AP", "test/AP50", "test/VOC07_AP50")
    assert main("AP", "AP50", "VOC07_AP50") == "test/VOC_AP50"


def test_bad_input(tmp_path):
    folder = write(tmp_path / "study", [row("a", 500)])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.csv").write_text("name,value\na,1\n")
    for arguments, said in (([tmp_path / "none"], "no results.csv in"), ([tmp_path / "other"], "no column 'run'"),
                            ([folder, "--metric", "test/map"], "no metric 'test/map'.*did you mean 'test/mAP'"),
                            ([folder, "--table", "cocoa"], "no such table; did you mean 'coco'"),
                            ([folder, "--draws", "2"], "at least 20"),
                            ([folder, "--out", folder / "results.csv"], "cannot write")):
        with pytest.raises(UserError, match=said) as error:
            command([*map(str, arguments)])
        assert "\n" not in str(error.value)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_opens_in_a_browser(made, tmp_path):
    """All pictures load, nothing is logged, and nothing but a table's own frame is wider than a phone."""
    counted = """<script>addEventListener("load", () => { document.title = JSON.stringify([
        [...document.images].filter(i => !i.naturalWidth).length, document.images.length,
        document.documentElement.scrollWidth <= innerWidth]); });</script>"""
    page = tmp_path / "page.html"
    page.write_text(made[1].replace("</body>", counted + "</body>"))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,900",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", f"file://{page}"],
        capture_output=True, text=True, timeout=120, check=True)
    assert re.search(r"<title>\[0,\d+,true\]</title>", done.stdout), re.search("<title>.*</title>", done.stdout)
    assert "CONSOLE" not in done.stderr
