"""What the loop may ask of a task. A new head is one subclass; the loop does not change."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from big_vision_lite.backbones.backbone import Features
from big_vision_lite.data.source import Described, Example, Records
from big_vision_lite.errors import UserError

Batch = dict[str, Array]
"""What a step sees: ``image`` uint8 ``[b, h, w, 3]``, ``mask`` bool ``[b]`` (False: a slot that holds no example
and must change nothing), and what ``Head.targets`` made of each example, stacked."""


_VIEW = {"size": (np.int32, 0), "original_size": (np.int32, 0), "scale": (np.float32, 1), "key": (np.uint32, 0)}


def view_of(example: Example) -> dict[str, np.ndarray]:
    """What a joint transform (`data.joint_transforms`) says of how an image is seen, for a head's targets: ``size`` and
    ``original_size`` int32 ``[2]``, ``scale`` float32 ``[2]`` and ``key`` uint32 ``[2]``. Of an empty slot zeros, and a
    scale of 1.

    Raises:
      UserError: the example comes from another transform.
    """
    if example["id"] and "size" not in example:
        raise UserError(f"image {example['id']!r} comes without its size; this head needs a joint transform, which "
                        "moves boxes and masks along with the image: ScaleJitter or Fit")
    return {name: np.asarray(example[name] if example["id"] else (empty, empty), dtype)
            for name, (dtype, empty) in _VIEW.items()}


class Scores(abc.ABC):
    """Gathers the outputs of an evaluation and turns them into figures."""

    @abc.abstractmethod
    def add(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
        """Takes one batch: what ``Head.outputs`` gave, and the batch as the pipeline made it."""

    @abc.abstractmethod
    def result(self) -> dict[str, float]:
        """The figures so far. "loss" and "images" are always there."""

    def check_results(self) -> None:
        """Called before an evaluation whose predictions are to be written by ``write_results``.

        Raises:
          UserError: there is no form for them, or the data lacks what belongs into it.
        """
        raise UserError("there is a file of results for detection alone, COCO's; leave --submission out")

    def write_results(self, path: Path) -> None:
        """Write the predictions so far as the task's server takes them. Raises: UserError, as ``check_results``."""
        self.check_results()


@dataclasses.dataclass(frozen=True)
class Head(abc.ABC):
    """A task on top of a backbone."""

    @property
    def mixes(self) -> bool:
        """Whether the loss of an example depends on others of its batch, beside what BatchNorm does."""
        return False

    @abc.abstractmethod
    def build(self, backbone: Features, data: Described, rngs: nnx.Rngs) -> nnx.Module:
        """The whole model: the backbone (as attribute ``backbone``) and this head's parameters."""

    @abc.abstractmethod
    def targets(self, example: Example) -> dict[str, np.ndarray]:
        """What the loss needs of one transformed example, in shapes that are the same for every example. For an
        empty slot it is called with an example without labels. An image of which nothing is known but its pixels,
        because its predictions alone are wanted, has ``unlabelled``: True."""

    @abc.abstractmethod
    def loss(self, model: Any, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """Loss of each example in training mode, and further figures of each example to log."""

    @abc.abstractmethod
    def outputs(self, model: Any, batch: Batch) -> dict[str, Array]:
        """What ``scores`` needs of a batch, each array with a leading batch axis. Runs jitted, in inference mode."""

    @abc.abstractmethod
    def scores(self, records: Records) -> Scores:
        """An empty collection of scores for one evaluation over ``records``."""

    @abc.abstractmethod
    def main_metric(self, data: Described) -> str:
        """The name in ``Scores.result`` by which runs are compared; larger is better."""

    @abc.abstractmethod
    def answers(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """The predictions for each image of a batch, all on the host, as values that JSON knows."""

    @abc.abstractmethod
    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        """Write a picture of predictions for the batch's images to ``path`` (PNG)."""
