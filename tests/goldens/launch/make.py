"""Regenerates the golden renderings: python tests/goldens/launch/make.py; then review what changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from big_vision_lite.launch.clusters import Local, read_cluster
from big_vision_lite.launch.render import render

HERE = Path(__file__).parent
CLUSTERS = HERE.parents[2] / "configs" / "clusters"
CONFIG = "configs/pretrain/imagenet1k.py:depth=50,data_dir=/data"
HARD = ["--train.source.name", "it's $(a) `b` \"c\"; d", "--steps", "7"]


def renderings() -> dict[str, str]:
    """Expected contents of each golden file, by name."""
    contents = {}
    for path in (*sorted(CLUSTERS.glob("*.toml")), HERE / "hard.toml"):
        cluster = read_cluster(path)
        if isinstance(cluster, Local):
            cluster = dataclasses.replace(cluster, python="python")
        job = render(cluster, f"{path.stem}-run", CONFIG, HARD if path.stem in ("hard", "skypilot") else [])
        contents |= {f"{path.stem}.{name}": text for name, text in job.files.items()}
    return contents


if __name__ == "__main__":
    for name, text in renderings().items():
        (HERE / name).write_text(text)
