"""Predictions of a run for image files: pictures, and JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.data.sources.files import read_file
from big_vision_lite.errors import BadImageError, UserError, writing
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system.atomic import replacing
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.trainer import Trainer


def predict(run: Path, images: Sequence[Path], out: Path, step: int | None = None,
            allowed: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yields for each image "image" (its file), "picture" (of its predictions), and what the head predicts.

    Images are seen as the run's first evaluation sees its own.

    Args:
      out: folder for the pictures, one PNG per image.
      step, allowed: as `open_run`.

    Raises:
      UserError: a file is missing, the pictures cannot be written, or as `open_run`: before any output. After the
        predictions of all others: files that cannot be read as images.
    """
    if not images:
        raise UserError("no image to predict for; name files: bvl predict RUN a.jpg b.png")
    for path in images:
        if not path.is_file():
            raise UserError(f"{str(path)!r} is a folder; name image files, as in {path}/*.jpg" if path.is_dir() else
                            f"no image file {str(path)!r}")
    trainer, state, _ = open_run(run, step, allowed)
    view = next(iter(trainer.experiment.evals.values()), trainer.experiment.train)
    rows = min(view.batch_size, -(-len(images) // trainer.mesh.size) * trainer.mesh.size)
    view = dataclasses.replace(view, batch_size=rows, on_bad_image="mask", curate=())
    out, choose = as_path(out), "choose another --out"
    with writing(f"to {str(out)!r}", choose):
        out.mkdir(parents=True, exist_ok=True)
    pictures = _picture_paths(images, out)
    head, files, bad = trainer.experiment.head, ImageFiles(images, trainer.data), []
    for batch, outputs in trainer.predictions(state.eval_params, state.batch_stats, view, files):
        bad += batch["index"][~batch["mask"] & (batch["index"] >= 0)].tolist()
        for row in np.flatnonzero(batch["mask"]):
            example = [{k: v[row : row + 1] for k, v in arrays.items()} for arrays in (batch, outputs)]
            index, (prediction,) = int(batch["index"][row]), head.to_json(*example, trainer.data.classes)
            with writing(repr(str(pictures[index])), choose), replacing(pictures[index]) as file:
                head.draw(file, *example, trainer.data.classes)
            yield {"image": str(images[index]), "picture": str(pictures[index]), **prediction}
    if bad:
        others = [repr(str(images[index])) for index in sorted(bad)[1:]]
        more = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
        raise UserError(_reason(trainer, view, files, min(bad)) + (f"; nor can {more}" if others else ""))


def _reason(trainer: Trainer, view: Input, files: ImageFiles, index: int) -> str:
    """Why an image cannot be read."""
    make = BatchMaker(files, dataclasses.replace(view, on_bad_image="raise"), trainer.experiment.head.targets, None)
    try:
        make.gather([index], [0])
    except BadImageError as error:
        return str(error)
    return f"image {files.paths[index]} could not be read, but can be now"


class ImageFiles(Dataset):
    """Image files without annotations.

    Args:
      info: of the data that a model was trained on, for the classes.
    """

    def __init__(self, paths: Sequence[Path], info: DatasetInfo):
        self.paths = tuple(paths)
        self.classes, self.multi_label, self.fingerprint = info.classes, info.multi_label, "files"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = str(self.paths[index])
        return {"id": path, "image": read_file(path, path), "labels": np.zeros(0, np.int32), "unlabelled": True}

    def image_sizes(self) -> np.ndarray:
        """Read anew: sizes are cached by the fingerprint, and that of these files says nothing of them."""
        return np.array([self._image_size(index) for index in range(len(self))], np.int32)


def _picture_paths(images: Sequence[Path], out: Path) -> list[Path]:
    """A distinct path for each image's picture, named after the image."""
    counts: dict[str, int] = {}
    paths = []
    for path in images:
        counts[path.stem] = count = counts.get(path.stem, 0) + 1
        paths.append(out / f"{path.stem}{f'-{count}' if count > 1 else ''}-predicted.png")
    return paths
