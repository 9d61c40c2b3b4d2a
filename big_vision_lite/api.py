"""The Python API: runs and laws in a notebook. docs/api.md shows all of it.

    import big_vision_lite as bvl

    run = bvl.train("configs/quickstart.py:steps=500")
    run.predict("photo.jpg")
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from big_vision_lite.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from big_vision_lite.commands.advise import Advice
    from big_vision_lite.data.source import Source
    from big_vision_lite.experiment import Experiment
    from big_vision_lite.heads.head import Prediction
    from big_vision_lite.scaling.laws.answers import Terms
    from big_vision_lite.scaling.laws.prediction import Prediction as LawPrediction
    from big_vision_lite.training.best import CheckpointChoice
    from big_vision_lite.training.step import TrainState
    from big_vision_lite.training.trainer import Trainer

    Picture = str | Path | np.ndarray | Image.Image
    """A file, uint8 ``[h, w, 3]`` or ``[h, w]``, or an image of Pillow's."""

__all__ = ["FittedLaw", "Run", "UserError", "advise", "fit_law", "load", "train"]
WEIGHTS = (".safetensors", ".npz", ".pth", ".pt")
WEIGHTS_OF_FOLDER = "model.safetensors"
"""In a folder that ``bvl export --to hf-folder`` wrote."""


def train(config: str | Experiment, workdir: str | Path | None = None) -> Run:
    """Train, or resume, and return the run. Ctrl-C saves a checkpoint first; the same call goes on from there.

    Args:
      config: as for ``bvl train``, ``"FILE.py:argument=value"``; or an `Experiment`.
      workdir: folder of the run; None: runs/NAME, after the config's file.

    Raises:
      UserError: as `training.loop.train`; or an `Experiment` without a ``workdir``.
      KeyboardInterrupt: after Ctrl-C.
    """
    from big_vision_lite.commands.arguments import run_name
    from big_vision_lite.commands.setup import set_up_jax
    from big_vision_lite.experiment import load_experiment
    from big_vision_lite.training.metrics import earlier_cpu_settings
    from big_vision_lite.training.workdir import run_folder

    if workdir is None:
        if not isinstance(config, str):
            raise UserError("train(Experiment(...)) needs a folder: workdir='runs/NAME'")
        workdir = Path("runs") / run_name(config)
    experiment = load_experiment(config) if isinstance(config, str) else config
    folder = run_folder(Path(workdir))
    set_up_jax(experiment, earlier=earlier_cpu_settings(folder))
    from big_vision_lite.training.loop import Stopped
    from big_vision_lite.training.loop import train as run_training

    try:
        run_training(experiment, folder)
    except Stopped as stop:
        raise KeyboardInterrupt(str(stop)) from stop
    return Run(folder)


def load(run: str | Path, checkpoint: CheckpointChoice = "last", classes: Sequence[str] | None = None,
         imports: Sequence[str] = ()) -> Run:
    """A run from its folder, or from published weights.

    Args:
      run: a folder; or a shared run, as the folder that ``bvl export --to hf-folder`` wrote or as ``hf:OWNER/NAME``;
        or ``hf:OWNER/NAME``, a URL or a file of a ResNet's weights (docs/weights.md). The last two become a run in the
        cache.
      checkpoint: its step, "best" by the main metric of the first evaluation (`Experiment.keep_best`), or "last".
      classes: class names of published weights; None: their numbers.
      imports: modules besides this package that the config's classes may come from.

    Raises:
      UserError: no such run, checkpoint, weights or module.
    """
    from big_vision_lite.weights.download import fetch, is_remote

    name = str(run)
    if not is_remote(name) and (Path(name) / WEIGHTS_OF_FOLDER).is_file():
        name = str(Path(name) / WEIGHTS_OF_FOLDER)
    if is_remote(name) or Path(name).suffix in WEIGHTS:
        from big_vision_lite.runs.import_export import import_weights
        from big_vision_lite.system.cache import cache_dir

        file = fetch(name)
        changed = file.stat().st_mtime_ns if file.is_file() else None
        key = hashlib.sha256(repr((name, classes, changed)).encode()).hexdigest()[:12]
        folder = cache_dir() / "imported" / f"{Path(name.partition('#')[0]).stem}-{key}"
        import_weights(name, folder, classes)
        return Run(folder)
    if classes is not None:
        raise UserError(f"classes= names those of published weights; the run {name!r} has its own")
    return Run(Path(name), checkpoint, imports)


class Run:
    """A run's newest checkpoint, or another one. Opened when it is first needed.

    Attributes:
      folder: of the run.
      experiment: its resolved config.

    Raises:
      UserError: the folder holds no run.
    """

    def __init__(self, folder: str | Path, checkpoint: CheckpointChoice = "last", imports: Sequence[str] = ()):
        from big_vision_lite.commands.setup import set_up_for

        self.folder, self._checkpoint, self._imports = Path(folder), checkpoint, tuple(imports)
        self.experiment: Experiment = set_up_for(self.folder, self._imports)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @functools.cached_property
    def _opened(self) -> tuple[Trainer, TrainState, int]:
        from big_vision_lite.runs.evaluate import open_run

        return open_run(self.folder, self._checkpoint, self._imports)

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return self._opened[2]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the network's outputs."""
        return self._opened[0].data.classes

    def predict(self, images: Picture | Iterable[Picture], score: float | None = None) -> list[dict[str, Any]]:
        """What the head predicts for each image: "labels" with "probability", "detections" with "box" (x1, y1, x2, y2
        in pixels of the image), "score" and "label", or "classes" with their shares of the pixels and "mask", uint8
        ``[h, w]`` of the image's size (0 background, c + 1 for class c). docs/heads.md has other heads.

        Args:
          images: one or many, of any sizes; arrays may also be stacked, ``[n, h, w, 3]``.
          score: leave out what has a lower score or probability.

        Raises:
          UserError: an image cannot be read (names it), or is no image.
        """
        return [{**one.values, **({} if one.mask is None else {"mask": one.mask})}
                for one in self._predictions(_pixels(images), score)]

    def draw(self, images: Picture | Iterable[Picture], score: float | None = None) -> list[Image.Image]:
        """The images with their predictions, each at its own resolution. Arguments and errors as `predict`."""
        from PIL import Image

        pixels = _pixels(images)
        head = self.experiment.head
        return [Image.fromarray(head.annotate(image, prediction, self.classes, score))
                for image, prediction in zip(pixels, self._predictions(pixels, score), strict=True)]

    def _predictions(self, pixels: Sequence[np.ndarray], score: float | None) -> list[Prediction]:
        from big_vision_lite.runs.predict import from_score, predictions

        trainer, state, _ = self._opened
        found = dict(predictions(trainer, state, pixels))
        return [from_score(found[index], score) for index in range(len(pixels))]

    def features(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """float32 ``[n, channels]``: the spatial mean of the backbone's last stage, seen as the run's first evaluation
        sees images. Arguments and errors as `predict`."""
        from big_vision_lite.runs.features import features_of

        trainer, state, _ = self._opened
        return features_of(trainer, state, _pixels(images))

    def evaluate(self, source: str | Source | None = None, split: str | None = None) -> dict[str, float | None]:
        """Metrics as "NAME/METRIC", None for those that do not exist; also written to evaluations/ in the folder.

        Args:
          source: other data, as for ``bvl evaluate``; None: the config's evaluations.
          split: another split of the first evaluation's source.

        Raises:
          UserError: no such data or split, both are given, or the data has other classes.
        """
        from big_vision_lite.commands.sources import source_of
        from big_vision_lite.runs.evaluate import evaluate

        if source is not None and split is not None:
            raise UserError("source and split exclude each other; give the split with the source: 'SOURCE:split=NAME'")
        sources = None
        if source is not None:
            name = Path(source.partition(":")[0]).stem if isinstance(source, str) else type(source).__name__
            sources = {name or "source": source_of(source) if isinstance(source, str) else source}
        metrics = evaluate(self.folder, split, self._checkpoint, self._imports, sources)
        return {name: value for name, value in metrics.items() if name != "step"}

    def metrics(self) -> dict[str, np.ndarray]:
        """Columns of metrics.jsonl, float64 ``[steps]``, NaN where a step has no such value: "step", "loss",
        "learning_rate", and at evaluations such as "validation/mAP". ``pandas.DataFrame(run.metrics())`` takes it."""
        from big_vision_lite.training.metrics import read_metrics

        rows: dict[int, dict[str, Any]] = {}
        for line in read_metrics(self.folder / "metrics.jsonl"):
            rows.setdefault(line["step"], {}).update(line)
        names = dict.fromkeys(["step", *(name for row in rows.values() for name in row)])
        return {name: np.array([math.nan if row.get(name) is None else row[name] for row in rows.values()], float)
                for name in names}


class Estimate(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class FittedLaw:
    """Scaling laws fitted to one learning curve. Printed, it says what more images would buy."""

    prediction: LawPrediction
    terms: Terms

    def at(self, images: float) -> Estimate:
        """The score at a number of images."""
        error, = self.prediction.errors([images])
        low, high = sorted(map(self.terms.convert, error.intervals[-1]))
        return Estimate(self.terms.convert(error.median), low, high)

    def images_for(self, score: float) -> Estimate:
        """The images that a score takes; inf where it is not reached (with `reached`, how probable that is)."""
        size = self.prediction.size_for(self.terms.convert(score)).size
        return Estimate(size.median, *size.intervals[-1])

    def reached(self, score: float) -> float:
        """Probability that a score is reached within 10,000 times the largest size."""
        return self.prediction.size_for(self.terms.convert(score)).reached

    def __str__(self) -> str:
        from big_vision_lite.scaling.laws import answers

        return "\n".join(answers.in_words(self.prediction, self.terms))


def fit_law(source: str | Path | Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray | None = None, *,
            score: str | None = None, lower_is_better: bool = False, chance: float | None = None,
            bootstrap: int = 64) -> FittedLaw:
    """All laws of one variable together (docs/scaling_laws.md), of the curve with the most sizes.

    Args:
      source: the folder of a study or its results.csv; or numbers of images, with ``errors`` of the same length.
      score: column of results.csv, such as "validation/mAP"; None: the main metric of the runs.
      lower_is_better: direction of ``score`` where it is no run's main metric.
      chance: the error of guessing; None: as the runs tell, or unknown.
      bootstrap: fits per law.

    Raises:
      UserError: no curve, fewer than four sizes, or errors that do not fall.
    """
    from big_vision_lite.scaling.laws import answers, curves, prediction

    if errors is None:
        if not isinstance(source, str | Path):
            raise UserError("fit_law(images, errors) takes two sequences of equal length; errors are missing")
        from big_vision_lite.scaling.report import series

        lines = [line for _, line in series.curves_of(Path(source), score, lower_is_better)]
        if not lines:
            raise UserError(f"{source}: no runs that differ in images alone, so there is no curve")
        line = max(lines, key=lambda line: len(line.sizes()))
        return FittedLaw(prediction.predict(line.curve(), line.chance if chance is None else chance,
                                            samples=bootstrap), line.terms)
    if isinstance(source, str | Path) or len(source) != len(errors):
        raise UserError("fit_law(images, errors) takes two sequences of equal length")
    return FittedLaw(prediction.predict(curves.from_points(source, errors), chance, samples=bootstrap), answers.ERRORS)


def advise(*sources: str | Path, images: float | None = None, seconds: float | None = None,
           gpu_hours: float | None = None, operations: float | None = None, rate: float | None = None,
           noise: float = 0.0, bootstrap: int = 64) -> Advice:
    """The best network and passes for a budget, and what more images, compute or better labels would buy: ``answers``
    in words, ``frontier`` as a table, and the fitted ``law``.

    Args:
      sources: folders of studies whose runs differ in images and in images seen, or their results.csv.
      images: images that there are; None: the most of the runs.
      seconds, gpu_hours, operations: one budget of a training run; none: that of the largest run.
      rate: operations per second; None: as measured in timings.csv.
      noise: share of your labels that are wrong.
      bootstrap: fits per form of the law.

    Raises:
      UserError: as ``bvl advise``.
    """
    from big_vision_lite.commands.advise import Advise, ask

    if not sources:
        raise UserError("advise() needs results: advise('runs/surface', images=50_000)")
    return ask(Advise(tuple(map(Path, sources)), images=images, seconds=seconds, gpu_hours=gpu_hours,
                      operations=operations, rate=rate, noise=noise, bootstrap=bootstrap))


def _pixels(images: Any) -> list[np.ndarray]:
    """Images as uint8 ``[h, w, 3]``. Raises: UserError."""
    from PIL import Image

    if isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    pixels = [_decoded(image, number) for number, image in enumerate(images)]
    if not pixels:
        raise UserError("no images; expected one or more")
    return pixels


def _decoded(image: Any, number: int) -> np.ndarray:
    from PIL import Image, ImageOps

    from big_vision_lite.data.decode import DecodeError, decode
    from big_vision_lite.data.sources.files import read_file
    from big_vision_lite.errors import BadImageError

    if isinstance(image, str | Path):
        try:
            return decode(read_file(str(image), str(image)))
        except DecodeError as error:
            raise BadImageError(str(image), str(error)) from error
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.getbands() or "transparency" in upright.info:  # on white, as files are
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.asarray(upright.convert("RGB"))
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(f"image {number} is {array.dtype} {list(array.shape)}; expected a file, an image of Pillow's, "
                        "or uint8 [height, width, 3]")
    return np.ascontiguousarray(array)
