"""The benchmark of all speeds: what it writes, and when it fails."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

ALL = Path(__file__).parents[2] / "benchmarks" / "all.py"
NAME = "average_precision_vs_sorting"


def test_ratios_are_written_and_a_fall_is_an_error(tmp_path):
    file, out = tmp_path / "ratios.csv", tmp_path / "ratios.json"

    def run():
        return subprocess.run([sys.executable, ALL, "--quick", "--names", NAME, "--csv", file, "--json", out],
                              capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})

    first = run()
    assert first.returncode == 0, first.stderr
    (row,) = csv.DictReader(file.read_text().splitlines())
    assert row["name"] == NAME and float(row["ratio"]) > 0
    assert float(row["ratio"]) == float(f"{json.loads(out.read_text())[NAME]:.4g}")
    with file.open("a", newline="") as rows:  # as if it had been ten times as fast, here and on another processor
        writer = csv.DictWriter(rows, row.keys(), lineterminator="\n")
        writer.writerows([{**row, "ratio": 10 * float(row["ratio"])},
                          {**row, "ratio": 1000, "processor": "another"}])
    second = run()
    assert second.returncode == 1
    assert f"{NAME} fell from {10 * float(row['ratio']):.2f} to " in second.stdout
    assert len(file.read_text().splitlines()) == 5
