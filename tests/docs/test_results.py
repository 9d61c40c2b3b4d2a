"""The tables in docs/results and README.md match the studies' csv files."""

import csv
import re
from pathlib import Path

import pytest

from big_vision_lite.scaling.report.report import paper_table

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_paper_tables_are_what_report_prints():
    text = (RESULTS / "paper_tables.md").read_text()
    blocks = re.findall(
        r"    bvl report (docs/results/paper/\w+) --table (\w+)\n\n```text\n(.*?)\n```", text, re.DOTALL)
    folders = [Path(folder).name for folder, _, _ in blocks]
    assert sorted(folders) == sorted(path.name for path in (RESULTS / "paper").iterdir())
    for folder, table, printed in blocks:
        assert printed == paper_table([RESULTS.parent.parent / folder], table), folder


def test_the_table_of_depths():
    with (RESULTS / "capacity" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    text = (RESULTS / "studies.md").read_text()
    lines = set()
    for row in rows:
        same = [other for other in rows if (other["images"], other["depth"]) == (row["images"], row["depth"])]
        cells = [f"{float(next(r[metric] for r in same if r[metric])):.3f}"
                 for metric in ("validation/mAP", "new_classes/few_shot_10", "test/top1")]
        lines.add(f"| {int(row['images']):,} | {row['depth']} | {' | '.join(cells)} |")
    assert len(lines) == 9 and all(line in text for line in lines)


def seed_table(study: str, columns: dict[str, tuple[str, dict[str, str]]], by: str = "images") -> list[str]:
    """Rows of a table: a level of ``by``, then for each column the values of its metric by seed, in ascending order, of
    the runs with given values in other columns."""
    with (RESULTS / study / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "done"]

    def cell(level: str, metric: str, values: dict[str, str]) -> str:
        scores = sorted(float(row[metric]) for row in rows
                        if row[metric] and row[by] == level and values.items() <= row.items())
        return ", ".join(f"{score:.3f}" for score in scores)

    levels = sorted({row[by] for row in rows}, key=float)
    labels = {level: f"{int(level):,}" if by == "images" else f"{100 * float(level):.0f} %" for level in levels}
    return [f"| {labels[level]} | " + " | ".join(cell(level, *column) for column in columns.values()) + " |"
            for level in levels]


def test_the_readme_has_the_medians():
    text = (RESULTS.parent.parent / "README.md").read_text()
    for study, metric, values in (("data_size", "validation/mAP", {"depth": "10"}),
                                  ("data_size", "test/top1", {"depth": "10", "frozen": "False"}),
                                  ("scenes_wide", "validation/mAP", {"depth": "50"}), ("photos", "test/top1", {}),
                                  ("photos_wide", "test/top1", {})):
        cells = [row.split("|")[2] for row in seed_table(study, {"": (metric, values)})]
        medians = [sorted(cell.split(", "))[len(cell.split(", ")) // 2].strip() for cell in cells]
        assert f"| {' | '.join(medians)} |" in text, (study, metric)


def scenes_columns(**values: str) -> dict[str, tuple[str, dict[str, str]]]:
    return {"mAP": ("validation/mAP", values), "few shots": ("new_classes/few_shot_10", values),
            "fine-tuned": ("test/top1", {"frozen": "False", **values}),
            "frozen": ("test/top1", {"frozen": "True", **values})}


NOISE = {name: column for name, column in scenes_columns().items() if name != "frozen"}


@pytest.mark.parametrize(("study", "columns", "by", "rows"), [
    ("data_size", scenes_columns(depth="10"), "images", 5), ("data_size", scenes_columns(depth="18"), "images", 5),
    ("scenes_wide", scenes_columns(depth="18"), "images", 6), ("scenes_wide", scenes_columns(depth="50"), "images", 6),
    ("photos", {"top-1": ("test/top1", {})}, "images", 5), ("photos_wide", {"top-1": ("test/top1", {})}, "images", 5),
    ("noise", NOISE, "noise", 4), ("noise_more", NOISE, "noise", 3)])
def test_tables_match_the_csv_files(study, columns, by, rows):
    text = (RESULTS / "studies.md").read_text()
    expected = seed_table(study, columns, by)
    assert len(expected) == rows
    for row in expected:
        assert row in text, row
