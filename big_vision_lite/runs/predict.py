"""Predictions of a run for image files: pictures, and JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.data.sources.files import read_file, read_lines
from big_vision_lite.errors import BadImageError, UserError, writing
from big_vision_lite.heads.keypoints import TopDown
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system.atomic import replacing
from big_vision_lite.system.parse import parse_json
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.trainer import Trainer

MIN_SCORE = 0.3
"""Detections of a lower score are not looked at."""


def predict(run: Path, images: Sequence[Path], out: Path, step: int | None = None,
            allowed: Sequence[str] = (), boxes: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yields for each image "image" (its file), "picture" (of its predictions), and what the head predicts.

    Images are seen as the run's first evaluation sees its own.

    Args:
      out: folder for the pictures, one PNG per image.
      step, allowed: as `open_run`.
      boxes: for keypoints: what `predict` yields for a detector and these images, as lines of JSON. Each detection of
        at least `MIN_SCORE` is predicted and drawn by itself; without ``boxes``, each image is one.

    Raises:
      UserError: ``boxes`` is for another task, or as `read_boxes`; a file is missing, the pictures cannot be written,
        or as `open_run`: before any output. After the predictions of all others: files that cannot be read as images.
    """
    if not images:
        raise UserError("no image to predict for; name files: bvl predict RUN a.jpg b.png")
    for path in images:
        if not path.is_file():
            raise UserError(f"{str(path)!r} is a folder; name image files, as in {path}/*.jpg" if path.is_dir() else
                            f"no image file {str(path)!r}")
    trainer, state, _ = open_run(run, step, allowed)
    view = next(iter(trainer.experiment.evals.values()), trainer.experiment.train)
    files = ImageFiles(images, trainer.data)
    if boxes is not None:
        if not isinstance(trainer.experiment.head, TopDown):
            raise UserError(f"--boxes {str(boxes)!r} is for keypoints, which are predicted within boxes; leave it out")
        detections = read_boxes(boxes, images, trainer.data.classes)
        images = [path for path, _, _ in detections]
        files = ImageFiles(images, trainer.data, [detection[1:] for detection in detections])
    rows = min(view.batch_size, -(-len(images) // trainer.mesh.size) * trainer.mesh.size)
    view = dataclasses.replace(view, batch_size=rows, on_bad_image="mask", curate=())
    out, choose = as_path(out), "choose another --out"
    with writing(f"to {str(out)!r}", choose):
        out.mkdir(parents=True, exist_ok=True)
    pictures = _picture_paths(images, out)
    head, bad = trainer.experiment.head, []
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
      boxes: a box to look at in each file, [x1, y1, x2, y2] in pixels of the upright image, and its score; None: none.
    """

    def __init__(self, paths: Sequence[Path], info: DatasetInfo,
                 boxes: Sequence[tuple[Sequence[float], float]] | None = None):
        self.paths, self._boxes = tuple(paths), boxes
        self.classes, self.multi_label, self.fingerprint = info.classes, info.multi_label, "files"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = str(self.paths[index])
        example = {"id": path, "image": read_file(path, path), "labels": np.zeros(0, np.int32), "unlabelled": True}
        if self._boxes is None:
            return example
        box, score = self._boxes[index]
        try:
            height, width = image_size(example["image"])
        except DecodeError as error:
            raise BadImageError(path, str(error)) from error
        return example | {"boxes": np.array([box]) / ([width, height] * 2), "box_score": np.float32(score)}

    def image_sizes(self) -> np.ndarray:
        """Read anew: sizes are cached by the fingerprint, and that of these files says nothing of them."""
        return np.array([self._image_size(index) for index in range(len(self))], np.int32)


class _Detection(msgspec.Struct):
    box: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]
    score: float
    label: str


class _Detected(msgspec.Struct):
    """A line that ``bvl predict`` prints for a detector."""

    image: str
    detections: list[_Detection]


def read_boxes(path: Path, images: Sequence[Path],
               classes: Sequence[str]) -> list[tuple[Path, list[float], float]]:
    """Image, box and score of each detection of at least `MIN_SCORE` of these classes, in the order of ``images``.

    Raises:
      UserError: the file cannot be read, has other lines than `predict` yields for a detector, or no such detection.
    """
    found: dict[str, list[_Detection]] = {}
    expected = "the lines that bvl predict prints for a detector"
    for line in read_lines(path, "--boxes", expected):
        detected = parse_json(line, _Detected, path, f"expected {expected}")
        found[detected.image] = detected.detections
    chosen = [(image, detection.box, detection.score) for image in images for detection in found.get(str(image), ())
              if detection.score >= MIN_SCORE and detection.label in classes]
    if not chosen:
        raise UserError(f"{path} has no detection of {' or '.join(classes)} with a score of at least {MIN_SCORE} in "
                        f"these images, such as {str(images[0])!r}; name them as they were named for the detector")
    return chosen


def _picture_paths(images: Sequence[Path], out: Path) -> list[Path]:
    """A distinct path for each image's picture, named after the image."""
    counts: dict[str, int] = {}
    paths = []
    for path in images:
        counts[path.stem] = count = counts.get(path.stem, 0) + 1
        paths.append(out / f"{path.stem}{f'-{count}' if count > 1 else ''}-predicted.png")
    return paths
