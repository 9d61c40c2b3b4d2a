"""The tables of docs/results/studies.md say what the studies' csv files say."""

import csv
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def table(study: str, columns: dict[str, tuple[str, dict[str, str]]]) -> list[str]:
    """Rows of a table: a number of images, then lowest, median and highest of the seeds of each column, which is a
    metric of those runs that have some values."""
    with (RESULTS / study / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "done"]

    def cell(images: str, metric: str, values: dict[str, str]) -> str:
        found = sorted(float(row[metric]) for row in rows
                       if row[metric] and row["images"] == images and values.items() <= row.items())
        return ", ".join(f"{value:.3f}" for value in found)

    sizes = sorted({row["images"] for row in rows}, key=int)
    return [f"| {int(size):,} | " + " | ".join(cell(size, *column) for column in columns.values()) + " |"
            for size in sizes]


SCENES = {f"{name}, depth {depth}": (metric, {"depth": depth, **values})
          for depth in ("10", "18")
          for name, metric, values in (("mAP", "validation/mAP", {}), ("few shots", "new_classes/few_shot_10", {}),
                                       ("fine-tuned", "test/top1", {"frozen": "False"}),
                                       ("frozen", "test/top1", {"frozen": "True"}))}
PHOTOS = {"top-1": ("test/top1", {})}


def test_tables_are_those_of_the_csv_files():
    text = (RESULTS / "studies.md").read_text()
    for study, columns in (("data_size", {k: v for k, v in SCENES.items() if k.endswith("10")}),
                           ("data_size", {k: v for k, v in SCENES.items() if k.endswith("18")}), ("photos", PHOTOS)):
        rows = table(study, columns)
        assert len(rows) == 5
        for row in rows:
            assert row in text, row
