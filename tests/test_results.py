"""The tables of docs/results/studies.md say what the studies' csv files say."""

import csv
import re
from pathlib import Path

import pytest

from big_vision_lite.scaling.report import paper_table

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def test_the_papers_tables_are_what_report_prints():
    text = (RESULTS / "paper_tables.md").read_text()
    shown = re.findall(r"    bvl report (docs/results/paper/\w+) --table (\w+)\n\n```text\n(.*?)\n```", text, re.DOTALL)
    assert sorted(Path(found[0]).name for found in shown) == sorted(path.name for path in (RESULTS / "paper").iterdir())
    for folder, table_, printed in shown:
        assert printed == paper_table([RESULTS.parent.parent / folder], table_), folder


def test_the_table_of_depths():
    with (RESULTS / "capacity" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    text = (RESULTS / "studies.md").read_text()
    made = set()
    for row in rows:
        same = [other for other in rows if (other["images"], other["depth"]) == (row["images"], row["depth"])]
        cells = [f"{float(next(r[metric] for r in same if r[metric])):.3f}"
                 for metric in ("validation/mAP", "new_classes/few_shot_10", "test/top1")]
        made.add(f"| {int(row['images']):,} | {row['depth']} | {' | '.join(cells)} |")
    assert len(made) == 9 and all(line in text for line in made)


def table(study: str, columns: dict[str, tuple[str, dict[str, str]]], by: str = "images") -> list[str]:
    """Rows of a table: a level of ``by``, then lowest, median and highest of the seeds of each column, which is a
    metric of those runs that have some values."""
    with (RESULTS / study / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "done"]

    def cell(level: str, metric: str, values: dict[str, str]) -> str:
        found = sorted(float(row[metric]) for row in rows
                       if row[metric] and row[by] == level and values.items() <= row.items())
        return ", ".join(f"{value:.3f}" for value in found)

    levels = sorted({row[by] for row in rows}, key=float)
    shown = {level: f"{int(level):,}" if by == "images" else f"{100 * float(level):.0f} %" for level in levels}
    return [f"| {shown[level]} | " + " | ".join(cell(level, *column) for column in columns.values()) + " |"
            for level in levels]


def test_the_readme_has_the_medians():
    text = (RESULTS.parent.parent / "README.md").read_text()
    for study, metric, values in (("data_size", "validation/mAP", {"depth": "10"}),
                                  ("data_size", "test/top1", {"depth": "10", "frozen": "False"}),
                                  ("scenes_wide", "validation/mAP", {"depth": "50"}), ("photos", "test/top1", {}),
                                  ("photos_wide", "test/top1", {})):
        cells = [row.split("|")[2] for row in table(study, {"": (metric, values)})]
        medians = [sorted(cell.split(", "))[len(cell.split(", ")) // 2].strip() for cell in cells]
        assert f"| {' | '.join(medians)} |" in text, (study, metric)


def of_scenes(**values: str) -> dict[str, tuple[str, dict[str, str]]]:
    return {"mAP": ("validation/mAP", values), "few shots": ("new_classes/few_shot_10", values),
            "fine-tuned": ("test/top1", {"frozen": "False", **values}),
            "frozen": ("test/top1", {"frozen": "True", **values})}


NOISE = {name: column for name, column in of_scenes().items() if name != "frozen"}


@pytest.mark.parametrize(("study", "columns", "by", "rows"), [
    ("data_size", of_scenes(depth="10"), "images", 5), ("data_size", of_scenes(depth="18"), "images", 5),
    ("scenes_wide", of_scenes(depth="18"), "images", 6), ("scenes_wide", of_scenes(depth="50"), "images", 6),
    ("photos", {"top-1": ("test/top1", {})}, "images", 5), ("photos_wide", {"top-1": ("test/top1", {})}, "images", 5),
    ("noise", NOISE, "noise", 4), ("noise_more", NOISE, "noise", 3)])
def test_tables_are_those_of_the_csv_files(study, columns, by, rows):
    text = (RESULTS / "studies.md").read_text()
    made = table(study, columns, by)
    assert len(made) == rows
    for row in made:
        assert row in text, row
