"""TOML files of clusters; the independent readings are tomllib's and bash's."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import ROOT, Case
from fuzz.made import special
from fuzz.mutate import of_text, pick

CLUSTERS = {path.stem: path.read_text() for path in sorted((ROOT / "configs" / "clusters").glob("*.toml"))}


def clusters(rng: np.random.Generator, number: int, folder: Path) -> Case:
    name = pick(rng, sorted(CLUSTERS))
    lines = [line for line in CLUSTERS[name].splitlines(keepends=True) if not line.startswith("#")]
    if number < 40:
        keys = [at for at, line in enumerate(lines) if "=" in line]
        value = pick(
            rng,
            (
                "0",
                "-1",
                "1e400",
                "nan",
                "9" * 400,
                "true",
                '""',
                '"a b"',
                '"$(touch sprung)"',
                '"a\\nb"',
                '"\\u0000"',
                "[]",
                "[1]",
                "{}",
                "[[]]",
                "1979-05-27",
                '"é"',
                "'" + "a" * 5000 + "'",
                '"-rf"',
                "{x = 1}",
                "'\"'",
                "[" * 300 + "]" * 300,
                '"`id`"',
                "'; rm x'",
            ),
        )
        at = pick(rng, keys)
        lines[at] = f"{lines[at].partition('=')[0]}= {value}\n"
        data, what = "".join(lines).encode(), lines[at].strip()
    else:
        data, what = of_text(rng, "".join(lines))
    if rng.random() < 0.05:
        special(pick(rng, ("pipe", "zero", "folder")), folder / "cluster.toml")
    else:
        (folder / "cluster.toml").write_bytes(data)
    (folder / "config.py").write_text((ROOT / "configs" / "quickstart.py").read_text())
    command = ("launch", "config.py", "--cluster", "cluster.toml", "--out", "job")
    return Case(command, ("cluster.toml",), f"{name}: {what:.100}", check="fuzz.test_clusters:equals_toml")


def equals_toml(folder: Path, arguments: list[str]) -> str | None:
    """The fields are tomllib's, and bash can read the script."""
    import subprocess

    from big_vision_lite.launch.clusters import read_cluster

    values = tomllib.loads((folder / "cluster.toml").read_text("utf-8-sig"))
    cluster = read_cluster(folder / "cluster.toml")
    if values.pop("kind") != cluster.kind:
        return f"kind {cluster.kind}"
    read = json.loads(json.dumps(dataclasses.asdict(cluster)))
    for key, value in values.items():
        both = ((value, read[key]),)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            both = tuple(
                (inner[name], outer[name]) for inner, outer in zip(value, read[key], strict=True) for name in inner
            )
        for given, found in both:
            if given != found or type(given) is not type(found):
                return f"{key}: {found!r} instead of {given!r}"
    for script in (folder / "job").glob("*.s*h*"):
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=10)
        if done.returncode:
            return f"{script.name} is no script of bash: {done.stderr[:200]}"
    return None


@harness.formats(130, 7, clusters=clusters)
def test_clusters(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
