"""Predictions of a run for image files: pictures, and values that programs can read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.data.source import Described, Example, Records
from big_vision_lite.errors import UserError
from big_vision_lite.remote import place, written
from big_vision_lite.training.evaluate import open_run


def predict(run: Path, images: Sequence[Path], out: Path, step: int | None = None,
            allowed: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """For each image as it is done: "image" (its file), "picture" (that of its predictions), and what the head answers.

    Images are seen as the run's first evaluation sees them.

    Args:
      out: folder for the pictures, a PNG an image.
      step, allowed: as `open_run`.

    Raises:
      UserError: a file is missing or is no image, or as `open_run`. Missing files are found before anything is written.
    """
    if not images:
        raise UserError("no image to predict for; name files: bvl predict RUN a.jpg b.png")
    for path in images:
        if not path.is_file():
            raise UserError(f"{str(path)!r} is a folder; name image files, as in {path}/*.jpg" if path.is_dir() else
                            f"no image file {str(path)!r}")
    job, state, _ = open_run(run, step, allowed)
    view = next(iter(job.experiment.evals.values()), job.experiment.train)
    rows = min(view.batch_size, -(-len(images) // job.mesh.size) * job.mesh.size)
    view = dataclasses.replace(view, batch_size=rows, on_bad_image="raise", curate=())
    out = place(out)
    out.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(images, out)
    head = job.experiment.head
    for batch, outputs in job.outputs(state.best_params, state.stats, view, ImageFiles(images, job.data)):
        for row in np.flatnonzero(batch["mask"]):
            one = [{k: v[row : row + 1] for k, v in arrays.items()} for arrays in (batch, outputs)]
            index, (answer,) = int(batch["index"][row]), head.answers(*one, job.data.classes)
            with written(pictures[index]) as file:
                head.draw(file, *one, job.data.classes)
            yield {"image": str(images[index]), "picture": str(pictures[index]), **answer}


class ImageFiles(Records):
    """Image files of which nothing is known but their pixels."""

    def __init__(self, paths: Sequence[Path], described: Described):
        self.paths = tuple(paths)
        self.classes, self.multi_label, self.fingerprint = described.classes, described.multi_label, "files"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        return {"id": str(self.paths[index]), "image": self.paths[index].read_bytes(), "labels": np.zeros(0, np.int32),
                "unlabelled": True}


def _pictures(images: Sequence[Path], out: Path) -> list[Path]:
    """A file of its own for each image's picture, named after it."""
    taken: dict[str, int] = {}
    found = []
    for path in images:
        taken[path.stem] = count = taken.get(path.stem, 0) + 1
        found.append(out / f"{path.stem}{f'-{count}' if count > 1 else ''}-predicted.png")
    return found
