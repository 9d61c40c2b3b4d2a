"""Predictions of a run for images: values, masks, and pictures at the photos' own resolution."""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from PIL import Image

from big_vision_lite.data.decode import DecodeError, decode, image_size
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.data.sources.files import is_image, read_file, read_lines
from big_vision_lite.errors import BadImageError, UserError, writing
from big_vision_lite.heads.detection.drawing import SHOWN
from big_vision_lite.heads.head import Prediction
from big_vision_lite.heads.keypoints import TopDown
from big_vision_lite.heads.segmentation.drawing import indexed
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system.atomic import replacing
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.system.parse import parse_json
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.best import CheckpointChoice
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.trainer import Trainer

QUALITY = 92
"""Of the pictures, which are JPEG files."""
IN_HAND = 8
"""Pictures per core that may wait to be drawn or written."""

ScoredBox = tuple[Sequence[float], float]
"""A detection: (x1, y1, x2, y2) in pixels of the upright image, and its score."""


def predict(run: Path, images: Sequence[Path], out: Path, checkpoint: CheckpointChoice = "last",
            allowed: Sequence[str] = (), score: float | None = None, boxes: Path | None = None
            ) -> Iterator[dict[str, Any]]:
    """Yields for each image "image" (its file), "picture" (the photo with its predictions), what the head predicts, and
    for tasks with masks "mask": a PNG of the photo's size whose values are classes, with VOC's colours as its palette.

    Images are seen as the run's first evaluation sees its own. Those of a folder are found as by `find_images`.

    Args:
      out: folder for the pictures and masks.
      checkpoint, allowed: as `open_run`.
      score: leave out what has a lower score or probability; None: keep all, and draw what suits the task.
      boxes: for keypoints: what `predict` yields for a detector and these images, as lines of JSON, see `read_boxes`.
        None: each image is one box.

    Raises:
      UserError: ``boxes`` is for another task, or as `read_boxes`; a file is missing, the pictures cannot be written,
        or as `open_run`: before any output. After the predictions of all others: files that cannot be read as images.
    """
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"--score {score:g}: expected a score from 0 to 1")
    out = as_path(out)
    files = find_images(images, out)
    trainer, state, _ = open_run(run, checkpoint, allowed)
    if boxes is not None and not isinstance(trainer.experiment.head, TopDown):
        raise UserError(f"--boxes {str(boxes)!r} is for keypoints, which are predicted within boxes; leave it out")
    found = None if boxes is None else read_boxes(boxes, files, trainer.data.classes)
    choose = "choose another --out"
    with writing(f"to {str(out)!r}", choose):
        out.mkdir(parents=True, exist_ok=True)
    stems, head, classes = _stems(files), trainer.experiment.head, trainer.data.classes

    def draw(index: int, prediction: Prediction) -> dict[str, Any]:
        picture, mask = (out / f"{stems[index]}-{kind}" for kind in ("predicted.jpg", "mask.png"))
        photo = decode(read_file(str(files[index]), str(files[index])))
        with writing(repr(str(picture)), choose):
            with replacing(picture) as file:
                Image.fromarray(head.annotate(photo, prediction, classes, score)).save(
                    file, quality=QUALITY, subsampling=0)
            if prediction.mask is not None:
                with replacing(mask) as file:
                    indexed(prediction.mask).save(file, optimize=False)
        written = {"mask": str(mask)} if prediction.mask is not None else {}
        return {"image": str(files[index]), "picture": str(picture), **written, **prediction.values}

    bad, pending = [], collections.deque[Future[dict[str, Any]]]()
    with ThreadPoolExecutor(usable_cores()) as pool:
        for index, prediction in (predictions(trainer, state, files) if found is None else
                                  predictions_in_boxes(trainer, state, files, found)):
            if prediction is None:
                bad.append(index)
                continue
            pending.append(pool.submit(draw, index, from_score(prediction, score)))
            while len(pending) > IN_HAND * usable_cores():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    if bad:
        others = [repr(str(files[index])) for index in sorted(bad)[1:]]
        more = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
        raise UserError(_reason(trainer, files, min(bad)) + (f"; nor can {more}" if others else ""))


def predictions(trainer: Trainer, state: TrainState,
                images: Sequence[Path | np.ndarray],
                boxes: Sequence[ScoredBox] | None = None) -> Iterator[tuple[int, Prediction | None]]:
    """Yields the index of each image and its prediction, None if it cannot be read, in the order of batches.

    Args:
      images: files, or uint8 ``[h, w, 3]``.
      boxes: see `ImageFiles`.
    """
    view = dataclasses.replace(view_for(trainer, len(images)), on_bad_image="mask")
    dataset, head, classes = ImageFiles(images, trainer.data, boxes), trainer.experiment.head, trainer.data.classes
    for batch, outputs in trainer.predictions(state.eval_params, state.batch_stats, view, dataset):
        good = np.flatnonzero(batch["mask"])
        made = head.predictions(*({k: v[good] for k, v in arrays.items()} for arrays in (batch, outputs)), classes)
        found = dict(zip(batch["index"][good].tolist(), made, strict=True))
        for index in batch["index"][batch["index"] >= 0].tolist():
            yield index, found.get(index)


def predictions_in_boxes(trainer: Trainer, state: TrainState, images: Sequence[Path],
                         boxes: Sequence[Sequence[ScoredBox]]) -> Iterator[tuple[int, Prediction | None]]:
    """As `predictions` of a `TopDown` head: the poses in all ``boxes`` of each image, by falling score."""
    owner = [image for image, of_image in enumerate(boxes) for _ in of_image]
    poses: list[list[Any] | None] = [[] for _ in images]
    each = predictions(trainer, state, [images[image] for image in owner],
                       [box for of_image in boxes for box in of_image])
    for index, prediction in each:
        of_image = poses[owner[index]]
        if prediction is None or of_image is None:
            poses[owner[index]] = None
        else:
            of_image += prediction.values["poses"]
    for image, of_image in enumerate(poses):
        yield image, None if of_image is None else Prediction(
            {"poses": sorted(of_image, key=lambda pose: -pose["score"])})


class _Detection(msgspec.Struct):
    box: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]
    score: float
    label: str


class _Detected(msgspec.Struct):
    """A line that ``bvl predict`` prints for a detector."""

    image: str
    detections: list[_Detection]


def read_boxes(path: Path, images: Sequence[Path], classes: Sequence[str]) -> list[list[ScoredBox]]:
    """The detections of these classes in each image, from a score of `SHOWN` on.

    Raises:
      UserError: the file cannot be read, has other lines than `predict` yields for a detector, or no such detection.
    """
    found: dict[str, list[_Detection]] = {}
    expected = "the lines that bvl predict prints for a detector"
    for line in read_lines(path, "--boxes", expected):
        detected = parse_json(line, _Detected, path, f"expected {expected}")
        found[detected.image] = detected.detections
    boxes = [[(detection.box, detection.score) for detection in found.get(str(image), ())
              if detection.score >= SHOWN and detection.label in classes] for image in images]
    if not any(boxes):
        raise UserError(f"{path} has no detection of {' or '.join(classes)} with a score of at least {SHOWN} in these "
                        f"images, such as {str(images[0])!r}; name them as they were named for the detector")
    return boxes


def find_images(images: Sequence[Path], out: Path | None = None) -> list[Path]:
    """The image files that paths name, each once: files, the images in folders and below them, and patterns such as
    ``photos/**/*.jpg``.

    Args:
      out: a folder that is left out of folders and patterns, as its pictures are predictions.

    Raises:
      UserError: a path names nothing.
    """
    if not images:
        raise UserError("no image to predict for; name files, folders or patterns: bvl predict RUN a.jpg photos")
    found: dict[Path, None] = {}
    for path in images:
        if path.is_file():
            found[path] = None
            continue
        folder = path.is_dir()
        names = glob.iglob(f"{glob.escape(str(path))}/**" if folder else str(path), recursive=True)
        inside = [Path(name) for name in sorted(names) if is_image(name) and os.path.isfile(name)]
        inside = [file for file in inside if out is None or not file.resolve().is_relative_to(out.resolve())]
        if not inside:
            raise UserError(f"no image in the folder {str(path)!r}" if folder else f"no image file {str(path)!r}")
        found |= dict.fromkeys(inside)
    return list(found)


def from_score(prediction: Prediction, score: float | None) -> Prediction:
    """The prediction without entries of a lower score or probability."""
    if score is None:
        return prediction
    values = {key: [one for one in value if not isinstance(one, dict)
                    or one.get("score", one.get("probability", score)) >= score] if isinstance(value, list) else value
              for key, value in prediction.values.items()}
    return prediction._replace(values=values)


def view_for(trainer: Trainer, images: int) -> Input:
    """How the run's first evaluation sees images, in batches that are not much larger than their number."""
    view = trainer.experiment.view
    rows = min(view.batch_size, -(-images // trainer.mesh.size) * trainer.mesh.size)
    return dataclasses.replace(view, batch_size=rows, curate=(), resident=None)


def _reason(trainer: Trainer, files: Sequence[Path], index: int) -> str:
    """Why an image cannot be read."""
    view = dataclasses.replace(view_for(trainer, 1), on_bad_image="raise")
    make = BatchMaker(ImageFiles(files, trainer.data), view, trainer.experiment.head.targets, None)
    try:
        make.gather([index], [0])
    except BadImageError as error:
        return str(error)
    return f"image {str(files[index])!r} could not be read, but can be now"


class ImageFiles(Dataset):
    """Images without annotations: files, or uint8 ``[h, w, 3]``.

    Args:
      info: of the data that a model was trained on, for the classes.
      boxes: what to look at in each image; None: all of it.
    """

    def __init__(self, images: Sequence[Path | np.ndarray], info: DatasetInfo,
                 boxes: Sequence[ScoredBox] | None = None):
        self.images, self._boxes = tuple(images), boxes
        self.classes, self.multi_label, self.fingerprint = info.classes, info.multi_label, "files"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image, name = self.images[index], f"image {index}"
        if not isinstance(image, np.ndarray):
            name = str(image)
            image = read_file(name, name)
        example = {"id": name, "image": image, "labels": np.zeros(0, np.int32), "unlabelled": True}
        if self._boxes is None:
            return example
        box, score = self._boxes[index]
        try:
            height, width = image_size(image)
        except DecodeError as error:
            raise BadImageError(name, str(error)) from error
        return example | {"boxes": np.array([box]) / ([width, height] * 2), "box_score": np.float32(score)}

    def image_sizes(self) -> np.ndarray:
        """Read anew: sizes are cached by the fingerprint, and that of these files says nothing of them."""
        return np.array([self._image_size(index) for index in range(len(self))], np.int32)


def _stems(files: Sequence[Path]) -> list[str]:
    """A distinct name for each image's picture, after the image."""
    stems: dict[str, None] = {}
    for path in files:
        name, number = path.stem, 2
        while name in stems:
            name, number = f"{path.stem}-{number}", number + 1
        stems[name] = None
    return list(stems)
