"""The interface between tasks and the training loop. A new task is a subclass of `Head`; the loop does not change."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.backbones.backbone import BackboneModule
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.details import Details
from big_vision_lite.heads.photo import AnnotatedPhoto

Batch = dict[str, Array]
"""Input of a step: ``image`` uint8 ``[b, h, w, 3]``, ``mask`` bool ``[b]`` (False: an empty slot, which must have no
effect), and the arrays of ``Head.targets``, stacked."""


_VIEW = {"size": (np.int32, 0), "original_size": (np.int32, 0), "scale": (np.float32, 1), "key": (np.uint32, 0)}


def view_of(example: Example) -> dict[str, np.ndarray]:
    """What a joint transform (`data.transforms.joint`) recorded about an image, for a head's targets: ``size`` and
    ``original_size`` int32 ``[2]`` (height, width), ``scale`` float32 ``[2]`` and ``key`` uint32 ``[2]``. For an empty
    slot they are zeros, and a scale of 1.

    Raises:
      UserError: the example comes from another transform.
    """
    if example["id"] and "size" not in example:
        raise UserError(f"image {example['id']!r} comes without its size; this head needs a joint transform, which "
                        "moves boxes and masks along with the image: ScaleJitter or ResizeToFit")
    return {name: np.asarray(example[name] if example["id"] else (default, default), dtype)
            for name, (dtype, default) in _VIEW.items()}


@dataclasses.dataclass(frozen=True)
class MainMetric:
    """The metric by which runs of a task are compared; a run records it in run.json."""

    name: str
    """Its key in `Metrics.result`."""
    higher_is_better: bool = True
    unit: str = ""
    """Empty for a fraction of 1, such as accuracy, "%" for percent; otherwise the unit, such as "px"."""

    def to_json(self) -> dict[str, str]:
        """"name", "direction" ("higher" or "lower", whichever is better) and "unit"."""
        return {"name": self.name, "direction": "higher" if self.higher_is_better else "lower", "unit": self.unit}


class Prediction(NamedTuple):
    """What a head says about one image."""

    values: dict[str, Any]
    """As JSON, see ``Head.to_json``."""
    mask: UInt8[np.ndarray, "h w"] | None = None
    """Class of each pixel of the image as stored (upright): 0 background, c + 1 for class c; None for tasks without."""


class Metrics(abc.ABC):
    """Accumulates the outputs of an evaluation and computes its metrics."""

    @abc.abstractmethod
    def add(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
        """Add one batch: the outputs of ``Head.predict``, and the batch as the pipeline made it."""

    @abc.abstractmethod
    def result(self) -> dict[str, float | None]:
        """The metrics so far, always with "loss" and "images"; None for one that does not exist, since nothing that it
        is about occurred."""

    def details(self) -> Details:
        """What a report shows beside the metrics: scores per class, confusions, a curve. Empty unless overridden."""
        return {}

    def check_results(self) -> None:
        """Called before an evaluation whose predictions ``write_results`` is to write.

        Raises:
          UserError: the task has no format for predictions, or the data lacks the ids that it needs.
        """
        raise UserError("only detection and keypoints have a results file, COCO's; leave --submission out")

    def write_results(self, path: Path) -> None:
        """Write the predictions so far in the format of the task's evaluation server.

        Raises: UserError, as ``check_results``.
        """
        self.check_results()


@dataclasses.dataclass(frozen=True)
class Head(abc.ABC):
    """A task on top of a backbone."""

    @abc.abstractmethod
    def build(self, backbone: BackboneModule, data: DatasetInfo, rngs: nnx.Rngs) -> nnx.Module:
        """The whole model: the backbone, as attribute ``backbone``, and this head's parameters."""

    @abc.abstractmethod
    def targets(self, example: Example) -> dict[str, np.ndarray]:
        """What the loss needs of one transformed example, in shapes that are the same for every example.

        For an empty slot, ``example`` has an empty ``id`` and no labels. An image that is only to be predicted
        has ``unlabelled``: True.
        """

    def for_data(self, dataset: Dataset) -> Head:
        """This head with sizes that the data decides, such as slots for labels, whose `targets` are then made."""
        return self

    def sizes(self, dataset: Dataset) -> str | None:
        """One line for users about the sizes that `for_data` chooses; None: it chooses none."""
        return None

    @property
    def needs_labels(self) -> bool:
        """Whether there is nothing to learn from, and nothing to score, without annotations."""
        return True

    def warning(self, metrics: dict[str, float]) -> str | None:
        """What is wrong with a run whose step has these metrics, and what to do, in one line; None: nothing."""
        return None

    @property
    def fixed_targets(self) -> bool:
        """Whether an image's ``targets`` are always the same, except that one named "key" is the example's "key".
        `Input.resident` then makes them once, else for each batch."""
        return False

    @abc.abstractmethod
    def loss(self, model: Any, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """The loss of each example in training mode, and further metrics of each example to log."""

    @abc.abstractmethod
    def predict(self, model: Any, batch: Batch) -> dict[str, Array]:
        """What `Metrics.add`, ``to_json`` and ``draw`` need, each array with a leading batch axis; in inference mode.
        Jitted."""

    def serve(self, model: Any, batch: Batch) -> dict[str, Array]:
        """Outputs of the network that ``bvl export`` writes, for a batch without annotations: those of `predict` that
        do not score it. A task adds what others would have to compute from them."""
        return {name: value for name, value in self.predict(model, batch).items() if name != "loss"}

    @abc.abstractmethod
    def metrics(self, dataset: Dataset) -> Metrics:
        """An empty accumulator for one evaluation over ``dataset``."""

    def check_eval(self, dataset: Dataset) -> None:  # noqa: B027
        """Called before a run for the data of each evaluation. Raises: UserError when nothing in it can be scored."""

    @abc.abstractmethod
    def main_metric(self, data: DatasetInfo) -> MainMetric:
        """The metric by which runs on such data are compared."""

    @abc.abstractmethod
    def to_json(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """The predictions of each image of a batch on the host, as JSON values."""

    @abc.abstractmethod
    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        """Write a picture of the batch's images with their predictions to ``path`` (PNG)."""

    def predictions(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                    classes: tuple[str, ...]) -> list[Prediction]:
        """The predictions of each image of a batch on the host."""
        return [Prediction(values) for values in self.to_json(batch, outputs, classes)]

    def annotate(self, photo: UInt8[np.ndarray, "h w 3"], prediction: Prediction, classes: tuple[str, ...],
                 score: float | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """A picture of a whole photo with its prediction, at the photo's resolution. Unless a head knows better, the
        values stand below the photo.

        Args:
          score: leave out what has a lower one; None: as suits the task.
        """
        return AnnotatedPhoto(photo).finish([(f"{key}: {value}", None) for key, value in prediction.values.items()])
