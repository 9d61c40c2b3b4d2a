"""Csv files of learning curves; the independent reading is the module csv's."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import Case
from fuzz.made import special
from fuzz.mutate import of_text, pick

CURVE = "images,error,seed,split\n" + "".join(
    f"{size},{0.1 + 5 * size**-0.5 + 0.001 * seed:.4f},{seed},{'extrapolate' if size > 3000 else 'train'}\n"
    for seed in (0, 1)
    for size in (100, 200, 400, 800, 1600, 3200)
)
ODD_NUMBERS = (
    "1e-300",
    "1e300",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "",
    " 0.5 ",
    "1_000",
    "٣",
    "0x10",
    "1,5",
    "5%",
    "1e-45",
    "9" * 400,
    "1e-31",
    "True",
)
ODD_CURVES = (
    "",
    "\n",
    "images,error\n",
    "images,error\n100,0.5\n",
    "images,error\n100,0.5\n100,0.5\n",
    "images,error\n" + "100,0.5\n" * 30,
    "images,error\n" + "".join(f"{2**i},0.5\n" for i in range(12)),
    "images,error\n" + "".join(f"{2**i},{0.1 + i / 20}\n" for i in range(12)),
    "images,error\n" + "".join(f"{10.0 ** (2 * i)},{0.9 / (i + 1)}\n" for i in range(14)),
    "images,error\n200,0.5\n100,0.6\n",
    "x,error\n1,0.9\n2,0.8\n4,0.7\n8,0.6\n",
    "images,error,curve\n" + "".join(f"{2**i},{1 / (i + 1)},c{i % 3}\n" for i in range(24)),
    'images,error\n"100,0.5\n',
    "images,images,error\n1,2,0.5\n",
    "images,error\n100,0.5,7\n",
    "images;error\n100;0.5\n",
    "\ufeffimages,error\n100,0.5\n200,0.4\n400,0.3\n800,0.25\n",
    "a,b\n1,2\n",
    "images,error\n" + "".join(f"{100 * 2**i},{1e-29 if i > 3 else 0.5}\n" for i in range(8)),
    "images,error\r100,0.5\r200,0.4\r",
    "\0\0\0",
    "images,error\n100,\0\n",
    "images,error\n" + "".join(f"{1e-29 * 2**i},{0.9 - i / 20}\n" for i in range(8)),
    "images,error," + "x" * 200_000 + "\n100,0.5,\n",
    "images,error\n" + "".join(f"{i + 1},{1 / (i + 1)}\n" for i in range(3000)),
    "images,error,seed\n" + "".join(f"100,0.{i + 1},{i}\n" for i in range(9)),
    *(CURVE.replace("800,", f"{number},", 1) for number in ODD_NUMBERS),
    *(CURVE.replace("0.6000", number, 1) for number in ODD_NUMBERS),
)


def curves(rng: np.random.Generator, number: int, folder: Path) -> Case:
    data, what = (ODD_CURVES[number].encode(), "by hand") if number < len(ODD_CURVES) else of_text(rng, CURVE)
    if rng.random() < 0.05:
        special(pick(rng, ("pipe", "zero", "folder")), folder / "curve.csv")
    else:
        (folder / "curve.csv").write_bytes(data)
    more = pick(
        rng,
        (
            (),
            (),
            (),
            ("--target-error", "0.2"),
            ("--figure", "a.png"),
            ("--chance", "0.9"),
            ("--law", "power"),
            ("--upstream", "images"),
            ("--law", "log-linear", "--at", "50", "1e6"),
        ),
    )
    return Case(
        ("laws", "curve.csv", "--bootstrap", "20", *more),
        ("curve", "--", "size", "error"),
        f"{what} {data!r:.80} {more}",
        check="fuzz.test_curves:counts_rows",
    )


def counts_rows(folder: Path, arguments: list[str]) -> str | None:
    """The points and sizes that are said are those of the file, and every number is finite and above 0."""
    if "--upstream" in arguments:
        return None
    with (folder / "curve.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, strict=True))
    x = next(name for name in ("x", "images", "seen_examples") if name in rows[0])
    said = [line for line in Path(f"{folder}.log", "stdout").read_text().splitlines() if " points at " in line]
    fitted = [row for row in rows if row.get("split", "train") == "train"]
    for row in rows:
        if not all(math.isfinite(float(row[column])) and float(row[column]) > 0 for column in (x, "error")):
            return f"accepted: {row}"
    names = list(dict.fromkeys(row.get("curve", "") for row in rows))
    expected = [
        (
            sum(row.get("curve", "") == name for row in fitted),
            len({float(row[x]) for row in fitted if row.get("curve", "") == name}),
        )
        for name in names
    ]
    found = [
        tuple(
            int(word.replace(",", ""))
            for word in line.rpartition(": ")[2].split(",  ")[0].replace("held out", "").split()
            if word.replace(",", "").isdigit()
        )[:2]
        for line in said
    ]
    return None if found == expected else f"{said} instead of {expected}"


@harness.formats(130, 7, curves=curves)
def test_curves(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
