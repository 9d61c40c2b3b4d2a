"""The tables in docs/results and README.md match the studies' csv files."""

import contextlib
import csv
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.answers import size_for
from big_vision_lite.scaling.laws.prediction import predict
from big_vision_lite.scaling.report.report import paper_table
from big_vision_lite.scaling.report.series import curves_of

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_paper_tables_are_what_report_prints():
    text = (RESULTS / "paper_tables.md").read_text()
    blocks = re.findall(
        r"    bvl report (docs/results/paper/\w+) --table (\w+)\n\n```text\n(.*?)\n```", text, re.DOTALL)
    folders = [Path(folder).name for folder, _, _ in blocks]
    assert sorted(folders) == sorted(path.name for path in (RESULTS / "paper").iterdir())
    for folder, table, printed in blocks:
        assert printed == paper_table([RESULTS.parent.parent / folder], table), folder


def seed_table(study: str, columns: dict[str, tuple[str, dict[str, str]]], by: str = "images") -> list[str]:
    """Rows of a table: a level of ``by``, then for each column the values of its metric by seed, in ascending order, of
    the runs with given values in other columns."""
    with (RESULTS / "fixed_steps" / study / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "done"]

    def cell(level: str, metric: str, values: dict[str, str]) -> str:
        scores = sorted(float(row[metric]) for row in rows
                        if row[metric] and row[by] == level and values.items() <= row.items())
        return ", ".join(f"{score:.3f}" for score in scores)

    levels = sorted({row[by] for row in rows}, key=float)
    labels = {level: f"{int(level):,}" if by == "images" else f"{100 * float(level):.0f} %" for level in levels}
    return [f"| {labels[level]} | " + " | ".join(cell(level, *column) for column in columns.values()) + " |"
            for level in levels]


def test_the_readme_has_the_grid():
    text = (RESULTS.parent.parent / "README.md").read_text()
    rows = [row for row in surface_rows("photos") if row["stage"] == "pretraining"]
    for images in (1_400, 8_000, 45_000):
        cells = [mean_of(rows, "val/top1", images=images, images_seen=seen)
                 for seen in (7_000, 28_000, 112_000, 450_000)]
        assert f"| {images:,} | {' | '.join(cells)} |" in text


def scenes_columns(**values: str) -> dict[str, tuple[str, dict[str, str]]]:
    return {"mAP": ("validation/mAP", values), "few shots": ("new_classes/few_shot_10", values),
            "fine-tuned": ("test/top1", {"frozen": "False", **values}),
            "frozen": ("test/top1", {"frozen": "True", **values})}


@pytest.mark.parametrize(("study", "columns", "by", "rows"), [
    ("data_size", scenes_columns(depth="10"), "images", 5), ("data_size", scenes_columns(depth="18"), "images", 5),
    ("scenes_wide", scenes_columns(depth="18"), "images", 6), ("scenes_wide", scenes_columns(depth="50"), "images", 6),
    ("photos_wide", {"top-1": ("test/top1", {})}, "images", 5)])
def test_tables_match_the_csv_files(study, columns, by, rows):
    text = (RESULTS / "fixed_steps.md").read_text()
    expected = seed_table(study, columns, by)
    assert len(expected) == rows
    for row in expected:
        assert row in text, row


def test_no_answer_contradicts_a_run():
    """Where a law says that a score is not reached and some run has it, the answer names the budget that it is of."""
    curves = [(path.parent, line) for path in sorted(RESULTS.rglob("results.csv"))
              for _, line in curves_of(path, None, False)]
    best: dict[tuple, float] = {}  # lowest errors of a metric with the same classes and images
    for _, line in curves:
        error = float(line.metric.to_error(line.values).min())
        best[comparable(line)] = min(error, best.get(comparable(line), error))
    asked = 0
    for folder, line in curves:
        with contextlib.suppress(UserError):  # too few sizes for an answer
            prediction = predict(line.curve(), line.chance)
            answer = size_for(prediction, best[comparable(line)], line.terms)
            asked += 1
            assert "not reached" not in answer or "others may reach it" in answer, (folder, line.label, answer)
            contradicted = prediction.size_for(best[comparable(line)]).reached < 0.005
            assert not contradicted or line.budget, (folder, line.label)
    assert asked >= 5


def comparable(line) -> tuple:
    """What errors are of."""
    name = line.metric.name
    return name, line.runs[0].factors.get("classes"), line.runs[0].metrics.get(f"{name.split('/')[0]}/images")


def test_claims_are_what_the_runs_say():
    root = RESULTS.parent.parent
    printed = subprocess.run([sys.executable, root / "tools" / "claims.py"], capture_output=True, text=True, check=True,
                             env={**os.environ, "PYTHONPATH": str(root)}).stdout
    assert printed == (RESULTS / "claims.md").read_text()


def surface_rows(folder: str) -> list[dict[str, str]]:
    with (RESULTS / "surface" / folder / "results.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["status"] == "done"]


def mean_of(rows: list[dict[str, str]], metric: str, **values: str | int) -> str:
    """The mean over seeds of the runs with these values, images seen to 1 %; "" if there are none."""
    scores = [float(row[metric]) for row in rows
              if all(math.isclose(float(row[name] or 0), value, rel_tol=0.01) if isinstance(value, int) else
                     row[name] == value for name, value in values.items())]
    return f"{sum(scores) / len(scores):.3f}" if scores else ""


@pytest.mark.parametrize(("folder", "metric", "seen"), [
    ("photos", "val/top1", (7_000, 14_000, 28_000, 56_000, 112_000, 225_000, 450_000)),
    ("scenes", "validation/mAP", tuple(8_000 * 2**k for k in range(8)))])
def test_the_grids_of_surfaces(folder, metric, seen):
    text = (RESULTS / "surface.md").read_text()
    rows = [row for row in surface_rows(folder) if row["stage"] == "pretraining"]
    images = sorted({int(row["images"]) for row in rows})
    assert len(images) == 5
    for count in images:
        cells = [mean_of(rows, metric, images=count, images_seen=number) for number in seen]
        assert f"| {count:,} | {' | '.join(cells)} |" in text, count


def test_the_transfers_of_the_surface():
    text = (RESULTS / "surface.md").read_text()
    rows = [row for row in surface_rows("photos") if row["target_images"]]
    for frozen, images in itertools.product(("False", "True"), (0, 1_400, 3_400, 8_000, 19_000, 45_000)):
        cells = [mean_of(rows, "test/top1", frozen=frozen, images=images, target_images=number)
                 for number in (100, 1_000, 10_000)]
        if any(cells):
            start = f"{images:,}" if images else "from scratch"
            assert f"| {start} | {'frozen' if frozen == 'True' else 'all layers'} | {' | '.join(cells)} |" in text


def test_the_noise_of_the_surface():
    text = (RESULTS / "surface.md").read_text()
    rows = [row for folder in ("photos", "noise") for row in surface_rows(folder) if row["stage"] == "pretraining"]
    for images, seen in itertools.product((8_000, 45_000), (56_000, 225_000)):
        cells = [mean_of(rows, "val/top1", images=images, images_seen=seen, noise=share)
                 for share in ("0.0", "0.2", "0.4")]
        within = mean_of(surface_rows("noise_parent"), "val/top1", images=images, images_seen=seen)
        assert f"| {images:,} | {seen:,} | {' | '.join(cells)} | {within} |" in text


def test_depth_and_labels_of_the_surface():
    text = (RESULTS / "surface.md").read_text()
    for images in (8_000, 45_000):
        cells = [mean_of([row for row in surface_rows(folder) if row["stage"] == "pretraining"], "val/top1",
                         images=images, images_seen=225_000) for folder in ("photos", "depth")]
        assert f"| {images:,} | {' | '.join(cells)} |" in text
    for start, folder, columns in (
            ("100 classes", "labels", ("test/superclass_top1", "test/top1", "False", "True")),
            ("their 20 superclasses", "superclasses", ("test/top1", "", "False", "True")),
            ("100 classes, without near-duplicates of test photos", "duplicates",
             ("test/superclass_top1", "test/top1", "", ""))):
        rows = [row for row in surface_rows(folder) if row["images"] == "44000"]
        cells = [", ".join(f"{float(row['test/top1' if column in ('False', 'True') else column]):.3f}" for row in rows
                           if (row["stage"] == "transfer") == (column in ("False", "True"))
                           and (row["frozen"] == column or row["stage"] == "pretraining")) if column else ""
                 for column in columns]
        assert f"| {start} | {' | '.join(cells)} |" in text, (start, cells)


def test_the_start_of_a_detector():
    text = (RESULTS / "dense_transfer.md").read_text()
    for folder, rate, head in (("rates", 0.02, 1), ("head_rates", 0.02, 12), ("rates", 0.06, 1), ("rates", 0.2, 1)):
        with (RESULTS / "detection_start" / folder / "results.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["stage"] == "transfer"
                    and (float(row["rate"]), float(row["head_rate"])) == (rate, head)]
        cells = [", ".join(f"{float(row['test/AP']):.3f}" for row in sorted(rows, key=lambda row: row["seed"])
                           if row["images"] == images) for images in ("666", "20000")]
        assert f"| {head * rate:g} | {' | '.join(cells)} |" in text


def test_boxes_and_masks():
    text = (RESULTS / "dense_transfer.md").read_text()
    for task, metric in (("boxes", "AP50"), ("boxes", "AP"), ("masks", "mIoU")):
        with (RESULTS / "dense_transfer" / task / "results.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["stage"] == "transfer"]
        assert len(rows) == 12
        for target in ("200", "2000"):
            chosen = [[row for row in rows if (row["images"], row["target_images"]) == (images, target)]
                      for images in ("32000", "0")]
            by_seed = [sorted(some, key=lambda row: row["seed"]) for some in chosen]
            cells = [", ".join(f"{float(row[f'test/{metric}']):.3f}" for row in some) for some in by_seed]
            assert f"| {task}, {metric} | {int(target):,} | {' | '.join(cells)} |" in text
